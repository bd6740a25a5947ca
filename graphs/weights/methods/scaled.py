"""Weights whose codes lie under their own names, with scales beside them: ``_scale``, or ``_scale_inv``, which is the same."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

from ferrum.graphs.expressions.expression import Expr, Tensor, mapped
from ferrum.graphs.weights.methods.layers import Layers, Method, reshape_or_fault, size_of

SUFFIXES = ("_scale_inv", "_scale")
KINDS = {"i8": "int8", "f8e4m3": "e4m3", "f8e5m2": "e5m2"}
_EXPONENTS = ("u8", "f8e8m0")


def read_scaled(layers: Layers, kinds: Container[str], *sizes: int) -> None:
    """``kinds``: dtypes of codes; ``sizes``: of the blocks that the configuration has. Codes without scales are refused."""
    for name, suffix in list(layers.ending(*SUFFIXES)):
        if layers.dtype(name) in kinds:
            layers.meanings[name] = _weight(layers, name, f"{name}{suffix}", sizes)
    for name in layers.checkpoint.names():
        if layers.dtype(name) in KINDS and name not in layers.meanings and not name.endswith((*SUFFIXES, "_zero_point")):
            raise layers.corrupt(f"{name} is {layers.dtype(name)} and has no scales that are read")


def _weight(layers: Layers, name: str, scale: str, sizes: tuple[int, ...]) -> Expr:
    codes = layers.tensor(name)
    if len(codes.shape) < 2:
        raise layers.corrupt(f"{name} is of shape {list(codes.shape)}, expected a matrix")
    scales, kind = floats(layers, matrix_of(layers, codes, scale)), KINDS[codes.dtype]
    n, k = codes.shape[-2:]
    rows, groups = scales.type.shape[-2:]
    size = size_of(k, groups, *sizes)
    if groups == 1 and rows not in (1, n):
        size = next((each for each in sizes if -(-n // each) == rows and each >= k), None)
    if size is None:
        raise layers.corrupt(f"{scale} of shape {list(layers.shape(scale))} beside {list(codes.shape)}")
    parts = [codes, layers.scales(scales) if kind == "int8" else scales]
    zeros = f"{name}_zero_point"
    if zeros in layers.checkpoint and kind == "int8":
        points = matrix_of(layers, codes, zeros)
        if not layers.are(points, 0):
            return layers.dequant(name, kind, size, *parts, points)
    layers.aside |= {zeros} & set(layers.checkpoint.names())
    return layers.dequant(name, kind, size, *parts)


def matrix_of(layers: Layers, codes: Tensor, name: str) -> Expr:
    """Numbers of a matrix, of its rows or of its blocks, with as many axes as the matrix."""
    tensor, axes = layers.tensor(name), len(codes.shape)
    single = all(size == 1 for size in tensor.shape)
    return reshape_or_fault(layers, tensor, (1,) * axes if single else (*tensor.shape, *(1,) * (axes - len(tensor.shape))))


def floats(layers: Layers, expr: Expr) -> Expr:
    """Scales as numbers: of 8-bit floats and of exponents as well."""
    dtype = expr.type.dtype
    function = "e4m3" if dtype == "f8e4m3" else "e8m0" if dtype in _EXPONENTS else ""
    if not function and dtype != "f32":
        raise layers.corrupt(f"scales of {dtype}")
    return mapped(expr, function) if function else expr


def _block(values: Mapping[str, Any]) -> Any:
    return values.get("weight_block_size")


def _fp8_faults(values: Mapping[str, Any]) -> list[str]:
    block, fmt = _block(values), values.get("fmt", "e4m3")
    found = [] if fmt in ("e4m3", "float8_e4m3fn", "e5m2") else [f"fmt {fmt!s:.20} is not read yet"]
    sizes = isinstance(block, list) and len(block) == 2 and all(type(size) is int and 1 <= size <= 1 << 20 for size in block)
    if block is not None and not (sizes and block[0] in (1, block[1])):
        found.append(f"blocks of {block!s:.40} are not read yet")
    return found


def _read_fp8(layers: Layers, values: Mapping[str, Any]) -> None:
    block = _block(values)
    read_scaled(layers, ("f8e4m3", "f8e5m2"), *([block[1]] if isinstance(block, list) else []))


FP8 = Method(_fp8_faults, _read_fp8)
