"""Metal sources as C++."""

from __future__ import annotations

HEADERS = ("metal_stdlib", "metal_simdgroup", "metal_simdgroup_matrix", "metal_atomic", "metal_math", "metal_compute")


def translate(source: str) -> str:
    """A C++ translation unit with the kernels of ``source``."""
    raise NotImplementedError
