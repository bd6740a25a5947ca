"""One graph rewrite per file, each ``run(graph) -> graph``. The order is in ``ferrum.graphs.pipeline``."""
