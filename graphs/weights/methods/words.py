"""GPTQ, AWQ and AutoRound: ``qweight``, ``scales`` and ``qzeros`` in the place of a weight; ``g_idx`` is the group of each K.

Which layers are packed, in how many bits and in which groups their tensors say, so that overrides by layer (``dynamic``) and
``modules_to_not_convert`` need no look. Sources: AutoGPTQ and GPTQModel (``QuantLinear.pack``), AutoAWQ
(``WQLinear_GEMM.from_linear``, ``WQLinear_GEMV.from_linear``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ferrum.graphs.expressions.expression import Expr, Tensor, Unpack, permute, rows
from ferrum.graphs.expressions.words import WORDS
from ferrum.graphs.weights.methods.layers import Layers, Method, size_of

_BITS = (2, 3, 4, 8)
_WORD = 32
_MAX_K = 1 << 24
_AS_GPTQ, _AS_AWQ = "auto_round:auto_gptq", "auto_round:auto_awq"  # AutoRound's words are those of one of both


def _bits(values: Mapping[str, Any]) -> object:
    return values.get("bits", values.get("w_bit"))


def _group(values: Mapping[str, Any]) -> object:
    return values.get("group_size", values.get("q_group_size"))


def _common_faults(values: Mapping[str, Any], bits: tuple[int, ...]) -> list[str]:
    group, found = _group(values), []
    if _bits(values) not in bits or isinstance(_bits(values), bool):
        found.append(f"{', '.join(map(str, bits))} bits are read")
    if not isinstance(group, int) or isinstance(group, bool) or not (group == -1 or 1 <= group <= _MAX_K):
        found.append(f"groups of {group!s:.20} are not read")
    return found


def _gptq_faults(values: Mapping[str, Any]) -> list[str]:
    layout = values.get("checkpoint_format", values.get("format", "gptq"))
    found = _common_faults(values, _BITS)
    if layout not in ("gptq", "gptq_v2"):
        found.append(f"checkpoint_format {layout!s:.20} is not read yet")
    if values.get("is_marlin_format"):
        found.append("the order of Marlin's kernels is not read yet")
    return found


def _awq_faults(values: Mapping[str, Any]) -> list[str]:
    version = str(values.get("version", values.get("format", "gemm"))).lower()
    found = _common_faults(values, (4,))
    return found if version in ("gemm", "gemv") else [*found, f"version {version:.20} is not read yet"]


def _read_gptq(layers: Layers, values: Mapping[str, Any]) -> None:
    layout = values.get("checkpoint_format", values.get("format", "gptq"))
    for stem, _ in layers.ending(".qweight"):
        zeros, n = layers.tensor(f"{stem}.qzeros", 2), layers.tensor(f"{stem}.qweight", 2).shape[1]
        given = _bits(values)
        fitting = [bits for bits in _BITS if -(-n * bits // _WORD) == zeros.shape[1]]
        if not fitting:
            raise layers.corrupt(f"{zeros.name} of shape {list(zeros.shape)} beside {n} columns")
        bits = given if given in fitting else fitting[0]
        layers.meanings[f"{stem}.weight"] = _weight(layers, stem, f"gptq{bits}{'v2' * (layout == 'gptq_v2')}", values)


def _read_awq(layers: Layers, values: Mapping[str, Any]) -> None:
    across = str(values.get("version", values.get("format", "gemm"))).lower() == "gemm"
    for stem, _ in layers.ending(".qweight"):
        if f"{stem}.qzeros" not in layers.checkpoint:
            raise layers.unread(f"awq: {stem} has no qzeros (zero_point = false)")
        layers.meanings[f"{stem}.weight"] = _weight(layers, stem, "awq4" if across else "awq4v", values)


def _weight(layers: Layers, stem: str, scheme: str, values: Mapping[str, Any]) -> Expr:
    """``[N, K]``."""
    lie, group = WORDS[scheme], _group(values)
    known = group if isinstance(group, int) else 0
    words, scales, zeros = (layers.tensor(f"{stem}.{part}", 2) for part in ("qweight", "scales", "qzeros"))
    k = words.shape[lie.axis] * _WORD // lie.bits if lie.codes == lie.axis else words.shape[lie.axis]
    padded: tuple[Expr, Expr] = (scales, zeros)
    if lie.axis == 1:  # rows of scales and zero points are filled up for a kernel's sake
        groups = 1 if known < 1 else -(-k // known)
        if groups > scales.shape[1] or -(-groups * lie.bits // _WORD) > zeros.shape[1]:
            raise layers.corrupt(f"{stem}: scales of shape {list(scales.shape)} for {groups} groups")
        padded = rows(scales, 1, 0, groups), rows(zeros, 1, 0, -(-groups * lie.bits // _WORD))
    groups = padded[0].type.shape[lie.axis]
    size = size_of(k, groups, known)
    if size is None:
        raise layers.corrupt(f"{stem}: {groups} groups of {k} values")
    parts = [words, layers.scales(padded[0]), padded[1]]
    index = order_of(layers, f"{stem}.g_idx", k, size or k, groups)
    made = layers.dequant(stem, scheme, size, *parts, *index)
    if layers.are(Unpack(zeros, lie.zeros, lie.bits, lie.places, lie.plus), 1 << lie.bits - 1):
        layers.aside.add(zeros.name)
        made = layers.dequant(stem, scheme, size, *parts[:2], *index)
    return permute(made, (1, 0)) if lie.axis == 0 else made


def order_of(layers: Layers, name: str, k: int, size: int, groups: int) -> list[Tensor]:
    """The group of each K where neighbours do not share one (``desc_act``)."""
    if name not in layers.checkpoint:
        return []
    index = layers.read(name, k)
    fits = layers.dtype(name) == "i32" and layers.shape(name) == (k,)
    if not fits or not ((index >= 0) & (index < groups)).all():
        raise layers.corrupt(f"{name} is not the group of each of {k} values, of {groups} groups")
    if np.array_equal(index, np.arange(k) // size):
        layers.aside.add(name)
        return []
    return [layers.tensor(name)]


def _round_faults(values: Mapping[str, Any]) -> list[str]:
    packing = values.get("packing_format")
    found = _common_faults(values, _BITS)
    return found if packing in (_AS_GPTQ, _AS_AWQ) else [*found, f"packing_format {packing!s:.40} is not read yet"]


def _read_round(layers: Layers, values: Mapping[str, Any]) -> None:
    same = {"bits": _bits(values), "group_size": _group(values)}
    (_read_awq if values["packing_format"] == _AS_AWQ else _read_gptq)(layers, same)


GPTQ = Method(_gptq_faults, _read_gptq)
AWQ = Method(_awq_faults, _read_awq)
AUTO_ROUND = Method(_round_faults, _read_round)
