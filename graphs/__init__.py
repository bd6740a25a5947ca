"""What a model is before any machine: the graph, its passes, its frontends and its weights."""
