"""How folders store quantized weights, a file for each method: what of it is read, and what its tensors mean."""
