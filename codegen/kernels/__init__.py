"""One spec per kernel: parameters, cost, reference. The template of the same stem holds its code."""
