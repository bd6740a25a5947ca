"""A GGUF file's tensors as those of the checkpoint that it was made of: expressions by the name that `transformers` knows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ferrum.errors import FerrumError
from ferrum.graphs.expressions.expression import Expr, Tensor, mapped, permute, reshape
from ferrum.graphs.expressions.schemes import dequantized
from ferrum.graphs.gguf.architectures import Architecture
from ferrum.graphs.gguf.config import require_architecture
from ferrum.graphs.weights.gguf import Gguf
from ferrum.graphs.weights.gguf_file import GgufFile
from ferrum.graphs.weights.safetensors import fault

_LAYER = re.compile(r"blk\.(\d{1,4})\.")
_CONFIG = ("rope_freqs.weight",)  # what the configuration says
_SCALES = (".scale", ".input_scale")  # of a whole tensor, and of activations, which are not rounded here


def is_aside(name: str) -> bool:
    """Whether a tensor is none of the model's own."""
    return name in _CONFIG or name.endswith(_SCALES)


def sources_of(model: Gguf, config: Mapping[str, Any]) -> dict[str, Expr]:
    """Raises FerrumError (weights-mismatch) for tensors that the architecture does not have."""
    record = require_architecture(model)
    found: dict[str, Expr] = {}
    unknown = []
    for file in model.files:
        for name in file.tensors:
            stem, _, kind = name.rpartition(".")
            layer = _LAYER.match(name)
            pattern = _LAYER.sub("blk.{}.", stem) if layer else stem
            if is_aside(name):
                continue
            if pattern not in record.tensors or kind not in ("weight", "bias"):
                unknown.append(name)
                continue
            target = record.tensors[pattern].replace("{}", layer[1] if layer else "")
            found[f"{target}.{kind}"] = _source(model, file, record, name, pattern, config)
    if unknown:
        what = f"{len(unknown)} tensors are there, but a {record.name} does not use them, first {unknown[0][:80]}"
        raise FerrumError("weights-mismatch", what, model.path.name, "use another checkpoint of this model")
    return found


def _source(model: Gguf, file: GgufFile, record: Architecture, name: str, pattern: str, config: Mapping[str, Any]) -> Expr:
    info, block = file.tensors[name], file.blocks.get(name)
    expr: Expr = dequantized(block, Tensor(name, info.shape, "u8")) if block else Tensor(name, info.shape)
    scale = file.tensors.get(f"{name.rpartition('.')[0]}.scale")
    if block and scale is not None:
        expr = mapped(expr, "mul", _one_number(file, f"{name.rpartition('.')[0]}.scale"))
    if record.permuted and pattern in ("blk.{}.attn_q", "blk.{}.attn_k"):
        kind = "num_attention_heads" if pattern.endswith("q") else "num_key_value_heads"
        expr = _halves(model, expr, int(config.get(kind) or config["num_attention_heads"]), name)
    if record.shifted and pattern.endswith("_norm"):
        expr = mapped(expr, "add", -1.0)
    if pattern in record.transposed and len(info.shape) == 2:
        expr = permute(expr, (1, 0))
    return expr


def _halves(model: Gguf, expr: Expr, heads: int, name: str) -> Expr:
    """Rows of each head from pairs that turn together to the halves that `transformers` has."""
    shape = expr.type.shape
    if shape[0] % (2 * heads):
        raise fault(model.path, f"tensor {name}", f"has {shape[0]} rows, not an even number for each of {heads} heads")
    split = reshape(expr, (heads, shape[0] // heads // 2, 2, *shape[1:]))
    return reshape(permute(split, (0, 2, 1, *range(3, len(shape) + 2))), shape)


def _one_number(file: GgufFile, name: str) -> float:
    values = file.read(name).reshape(-1)
    if values.dtype != np.float32 or values.size != 1:
        raise fault(file.path, f"tensor {name}", "is not one float32")
    return float(values[0])
