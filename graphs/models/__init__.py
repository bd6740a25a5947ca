"""One torch module per family: plain mathematics, and its map of checkpoint names."""
