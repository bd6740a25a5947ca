"""The built-in model: its files, the questions it is asked and how well it answers them."""
