"""Numbers of four bits, e2m1, two in a byte: what several methods store, and MXFP4 as gpt-oss has it.

gpt-oss has experts in ``_blocks`` of 16 bytes along K and ``_scales``, their exponents: ``[experts, N, K]``, which the model has
transposed. Source: `transformers` (``convert_moe_packed_tensors``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from ferrum.graphs.expressions.expression import Expr, Tensor, mapped, permute
from ferrum.graphs.weights.methods.layers import Layers, Method, reshape_or_fault
from ferrum.graphs.weights.methods.scaled import floats

_SIZES = {"f8e4m3": 16, "u8": 32, "f8e8m0": 32}  # of a block, by the dtype of scales


def four_bits(layers: Layers, name: str, codes: Expr, stored: Tensor, whole: str, how: Literal["div", "mul"]) -> Expr:
    """Values of bytes ``codes``; scales that are 8-bit floats are divided by, or multiplied with, the one number ``whole``."""
    if stored.dtype not in _SIZES:
        raise layers.corrupt(f"{stored.name} is {stored.dtype}, expected {' or '.join(_SIZES)}")
    scales = floats(layers, stored)
    if stored.dtype == "f8e4m3":
        number = layers.number(whole)
        if not 0 < number < float("inf"):
            raise layers.corrupt(f"{whole} is {number}")
        layers.aside.add(whole)
        scales = mapped(scales, how, number)
    return layers.dequant(name, "fp4", _SIZES[stored.dtype], codes, layers.scales(mapped(scales, "mul", 0.5)))


def _faults(values: Mapping[str, Any]) -> list[str]:
    return []


def _read(layers: Layers, values: Mapping[str, Any]) -> None:
    for name, _ in layers.ending("_blocks"):
        blocks, scales = layers.tensor(f"{name}_blocks", 4), layers.tensor(f"{name}_scales", 3)
        codes = reshape_or_fault(layers, blocks, (*blocks.shape[:2], blocks.shape[2] * blocks.shape[3]))
        layers.meanings[name] = permute(four_bits(layers, name, codes, scales, "", "mul"), (0, 2, 1))


MXFP4 = Method(_faults, _read)
