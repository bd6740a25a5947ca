"""How a graph runs on a machine: kernels are selected, planned, rendered, built and packed."""
