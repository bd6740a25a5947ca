"""Products of rows with one matrix of a stack each: the experts of a layer.

Rows are put in the order of their matrices first, so that each matrix is read once for all of its rows and those of no row not
at all. The product itself is that of ``linear``, from the same layouts; what stands in a row depends on that row alone.
"""
