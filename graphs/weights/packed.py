"""Folders whose linear layers are quantized: what a ``quantization_config`` says, and what the tensors mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ferrum.graphs.expressions.expression import Expr, ExpressionFault, Tensor, tensors
from ferrum.graphs.weights.checkpoint import Checkpoint
from ferrum.graphs.weights.methods.bitsandbytes import BITSANDBYTES
from ferrum.graphs.weights.methods.compressed import COMPRESSED
from ferrum.graphs.weights.methods.fp4 import MXFP4
from ferrum.graphs.weights.methods.layers import Layers, Method
from ferrum.graphs.weights.methods.modelopt import MODELOPT
from ferrum.graphs.weights.methods.scaled import FP8
from ferrum.graphs.weights.methods.words import AUTO_ROUND, AWQ, GPTQ

METHODS: Mapping[str, Method] = {
    "gptq": GPTQ,
    "awq": AWQ,
    "compressed-tensors": COMPRESSED,
    "fp8": FP8,
    "mxfp4": MXFP4,
    "bitsandbytes": BITSANDBYTES,
    "modelopt": MODELOPT,
    "auto-round": AUTO_ROUND,
    "intel/auto-round": AUTO_ROUND,
}


def packing_fault(config: Mapping[str, Any]) -> str:
    """Why a folder's ``quantization_config`` cannot be read, with the method's name; empty when it can, or there is none."""
    given = config.get("quantization_config")
    if given is None:
        return ""
    values = given if isinstance(given, Mapping) else {}
    named, bits = values.get("quant_method", "no named method"), values.get("bits", values.get("w_bit"))
    details = [values.get("quant_type"), values.get("format"), values.get("bnb_4bit_quant_type")]
    details += [f"{bits} bits"] if isinstance(bits, int) else []
    method = METHODS.get(named) if isinstance(named, str) else None
    reasons = method.faults(values) if method else ["not read yet"]
    words = ", ".join(word[:40] for word in (named, *details) if isinstance(word, str) and word)
    text = f"quantization_config: {words} ({', '.join(reasons)})" if reasons else ""
    return " ".join(text.split())


def unpacked(checkpoint: Checkpoint, config: Mapping[str, Any]) -> Checkpoint:
    """The same with what the model's tensors are of those stored.

    Raises FerrumError: format-unsupported for what of the tensors is not read, checkpoint-corrupt for tensors that do not belong
    together.
    """
    values = config.get("quantization_config")
    if not isinstance(values, Mapping) or packing_fault(config):
        return checkpoint
    layers = Layers(checkpoint)
    try:
        METHODS[values["quant_method"]].read(layers, values)
    except ExpressionFault as fault:
        raise layers.corrupt(str(fault)) from None
    taken = {tensor.name for expr in layers.meanings.values() for tensor in tensors(expr)} | layers.aside | layers.unused
    plain: dict[str, Expr] = {name: Tensor(name, checkpoint.info(name)[1]) for name in checkpoint.names() if name not in taken}
    meanings = plain | layers.meanings
    return replace(checkpoint, meanings=meanings, aside=frozenset(layers.aside | layers.unused), unused=frozenset(layers.unused))
