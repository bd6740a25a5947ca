"""bitsandbytes: nf4 and fp4, flat blocks of places in a table, whose scales may be quantized likewise; int8 with a scale a row.

Source: the package of that name (``functional.py``: ``QuantState.as_dict``, ``dequantize_4bit``, ``int8_vectorwise_dequant``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ferrum.graphs.expressions.expression import Expr, mapped, reshape
from ferrum.graphs.weights.methods.layers import Layers, Method, reshape_or_fault

_MAX_STATE = 4096
_MAX_SIZE = 1 << 16
_STATE = ".quant_state.bitsandbytes__"


class _State(msgspec.Struct):
    """What a layer's JSON says; the types of the numbers and of the table their tensors say."""

    blocksize: int
    shape: list[int]
    quant_type: str = ""
    nested_blocksize: int = 0
    nested_offset: float = 0.0


def _faults(values: Mapping[str, Any]) -> list[str]:
    kind = values.get("bnb_4bit_quant_type", "nf4")
    four = values.get("load_in_4bit", values.get("_load_in_4bit")) is True
    if not four and values.get("load_in_8bit", values.get("_load_in_8bit")) is not True:
        return ["neither of four bits nor of eight"]
    return [f"bnb_4bit_quant_type {kind!s:.20} is not read"] if four and kind not in ("nf4", "fp4") else []


def _read(layers: Layers, values: Mapping[str, Any]) -> None:
    for name, _ in layers.ending(f"{_STATE}nf4", f"{_STATE}fp4"):
        layers.meanings[name] = _four(layers, name)
    for stem, _ in layers.ending(".SCB"):
        codes, scales = layers.tensor(f"{stem}.weight", 2), layers.tensor(f"{stem}.SCB")
        layers.aside |= {f"{stem}.weight_format"} & set(layers.checkpoint.names())
        if f"{stem}.weight_format" in layers.aside and layers.read(f"{stem}.weight_format", 1).tolist() != [0]:
            raise layers.unread(f"bitsandbytes: {stem}.weight_format is not that of rows")
        column = mapped(reshape_or_fault(layers, scales, (codes.shape[0], 1)), "div", 127.0)
        layers.meanings[f"{stem}.weight"] = layers.dequant(stem, "int8", 0, codes, layers.scales(column))
    for name in layers.checkpoint.names():
        if name.endswith(".weight") and layers.dtype(name) in ("u8", "i8") and name not in layers.meanings:
            raise layers.corrupt(f"{name} is {layers.dtype(name)} and has no scales that are read")


def _four(layers: Layers, name: str) -> Expr:
    state_name = next(f"{name}{_STATE}{kind}" for kind in ("nf4", "fp4") if f"{name}{_STATE}{kind}" in layers.checkpoint)
    layers.aside.add(state_name)
    try:
        state = msgspec.json.decode(layers.read(state_name, _MAX_STATE).tobytes(), type=_State)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise layers.corrupt(f"{state_name} cannot be read: {str(error)[:80]}") from None
    if not (1 <= state.blocksize <= _MAX_SIZE and 0 <= state.nested_blocksize <= _MAX_SIZE):
        raise layers.corrupt(f"{state_name} has blocks of {state.blocksize} and {state.nested_blocksize}")
    codes = layers.tensor(name)
    flat = reshape_or_fault(layers, codes, (_count(codes.shape),))
    scales: Expr = layers.tensor(f"{name}.absmax", 1)
    if f"{name}.nested_absmax" in layers.checkpoint:
        inner = layers.tensor(f"{name}.nested_absmax", 1), layers.tensor(f"{name}.nested_quant_map", 1)
        scales = layers.dequant(name, "table8", max(1, state.nested_blocksize), scales, *inner)
        scales = mapped(scales, "add", state.nested_offset)
    values = layers.dequant(name, "table4", state.blocksize, flat, scales, layers.tensor(f"{name}.quant_map", 1))
    return layers.typed(name, lambda: reshape(values, tuple(state.shape)))


def _count(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


BITSANDBYTES = Method(_faults, _read)
