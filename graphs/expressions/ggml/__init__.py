"""Blocks of the GGUF format: for each type its codes, scales and minima, such that value = scale * code + minimum.

Source: ggml's ``ggml-common.h`` (the structs) and ``ggml-quants.c`` (what they mean); the results are the bits of the package
``gguf``. Every function takes whole blocks as bytes ``[blocks, nbytes]``.
"""
