"""compressed-tensors, which llm-compressor writes: whole numbers in words, bytes, 8-bit and 4-bit floats.

Which layers are quantized, in how many bits and in which groups their tensors say; ``config_groups`` says what there may be, so
that ``targets`` and ``ignore`` need no look. Source: the package of that name (``compressors``, ``quantization``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ferrum.graphs.expressions.expression import Expr, rows
from ferrum.graphs.weights.methods.fp4 import four_bits
from ferrum.graphs.weights.methods.layers import Layers, Method, size_of
from ferrum.graphs.weights.methods.scaled import floats, matrix_of, read_scaled
from ferrum.graphs.weights.methods.words import order_of

_FORMATS = (
    "pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "nvfp4-pack-quantized", "mxfp4-pack-quantized",
    "mxfp8-quantized", "mixed-precision",
)  # fmt: skip
_KINDS = (("float", 4), ("float", 8), *(("int", bits) for bits in range(2, 9)))
_WORD = 32
_MAX_SIZE = 1 << 24


def _schemes(values: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    groups = values.get("config_groups")
    for group in groups.values() if isinstance(groups, Mapping) else ():
        if isinstance(group, Mapping):
            yield group


def _weights(values: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for group in _schemes(values):
        if isinstance(weights := group.get("weights"), Mapping):
            yield weights


def _faults(values: Mapping[str, Any]) -> list[str]:
    formats = [values.get("format"), *(group.get("format") for group in _schemes(values))]
    unknown = dict.fromkeys(f"{name!s:.30}" for name in formats if name is not None and name not in _FORMATS)
    found = [f"format {name} is not read yet" for name in unknown]
    sparsity = values.get("sparsity_config")
    sparse = sparsity.get("format", "dense") if isinstance(sparsity, Mapping) else "dense"
    if sparse != "dense":
        found.append(f"sparsity {sparse!s:.30} is not read yet")
    if values.get("transform_config"):
        found.append("transforms of activations (transform_config) are not read yet")
    if values.get("quantization_status", "compressed") != "compressed":
        found.append(f"quantization_status {values.get('quantization_status')!s:.20} is not read yet")
    if not found and not any(True for _ in _weights(values)):
        found.append("config_groups has no weights")
    return found + [fault for weights in _weights(values) for fault in _weights_faults(weights)]


def _weights_faults(weights: Mapping[str, Any]) -> Iterator[str]:
    bits, kind, size = weights.get("num_bits"), weights.get("type", "int"), weights.get("group_size")
    if type(bits) is not int or (kind, bits) not in _KINDS:
        yield f"{kind!s:.20} of {bits!s:.20} bits is not read"
    if size is not None and (type(size) is not int or not (size == -1 or 1 <= size <= _MAX_SIZE)):
        yield f"groups of {size!s:.20} are not read"
    if _block(weights) is None:
        yield f"blocks of {weights.get('block_structure')!s:.40} are not read yet"


def _block(weights: Mapping[str, Any]) -> int | None:
    """Values along K of a block; 0 if weights are in none."""
    block = weights.get("block_structure")
    if block is None:
        return 0
    fits = isinstance(block, list) and len(block) == 2 and all(type(size) is int and 1 <= size <= _MAX_SIZE for size in block)
    return block[1] if fits and block[0] in (1, block[1]) else None


def _read(layers: Layers, values: Mapping[str, Any]) -> None:
    schemes = list(_weights(values))
    sizes = [size for weights in schemes for size in (weights.get("group_size") or 0, _block(weights) or 0) if size > 0]
    bits = tuple(dict.fromkeys(weights["num_bits"] for weights in schemes if weights.get("type", "int") == "int"))
    for stem, _ in list(layers.ending(".weight_packed")):
        if layers.dtype(f"{stem}.weight_packed") == "u8":
            codes, scales = layers.tensor(f"{stem}.weight_packed", 2), layers.tensor(f"{stem}.weight_scale", 2)
            whole = f"{stem}.weight_global_scale"
            layers.meanings[f"{stem}.weight"] = four_bits(layers, stem, codes, scales, whole, "div")
        else:
            layers.meanings[f"{stem}.weight"] = _packed(layers, f"{stem}.weight", bits, sizes)
    read_scaled(layers, ("i8", "f8e4m3"), *sizes)


def _packed(layers: Layers, name: str, allowed: tuple[int, ...], sizes: list[int]) -> Expr:
    words, n_k = layers.tensor(f"{name}_packed", 2), layers.read(f"{name}_shape", 2)
    layers.aside.add(f"{name}_shape")
    if layers.dtype(f"{name}_shape") not in ("i64", "i32") or len(n_k) != 2 or n_k[0] != words.shape[0] or n_k[1] < 1:
        raise layers.corrupt(f"{name}_shape is {n_k.tolist()!s:.60} beside words of shape {list(words.shape)}")
    k = int(n_k[1])
    bits = next((each for each in allowed if -(-k * each // _WORD) == words.shape[1]), 0)
    if not bits:
        listed = ", ".join(map(str, allowed)) or "no"
        raise layers.corrupt(f"{name}_packed of shape {list(words.shape)} is not {k} values a row of {listed} bits")
    scales = matrix_of(layers, words, f"{name}_scale")
    if scales.type.shape[0] == 1 < words.shape[0]:
        raise layers.unread(f"compressed-tensors: {name}_packed has one scale for all rows")
    size = size_of(k, scales.type.shape[1], *sizes)
    if size is None:
        raise layers.corrupt(f"{name}_scale of shape {list(scales.type.shape)} beside {k} values a row")
    index = order_of(layers, f"{name}_g_idx", k, size or k, scales.type.shape[1])
    parts = [words, layers.scales(floats(layers, scales)), *_zeros(layers, f"{name}_zero_point"), *index]
    made = layers.dequant(name, f"packed{bits}", size, *parts)
    return rows(made, 1, 0, k)


def _zeros(layers: Layers, name: str) -> list[Expr]:
    return [layers.tensor(name, 2)] if name in layers.checkpoint else []


COMPRESSED = Method(_faults, _read)
