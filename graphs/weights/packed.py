"""Folders whose linear layers are packed four bits to a value: what a ``quantization_config`` says, and what the tensors mean.

GPTQ stores ``[K, N]`` as words of eight values along K, a zero point less one (``gptq``) or as it is (``gptq_v2``); AWQ as words
of eight columns in an order of its own. Which layers are packed their tensors say. Sources: AutoGPTQ and GPTQModel
(``QuantLinear.pack``), AutoAWQ (``WQLinear_GEMM.from_linear``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ferrum.errors import FerrumError
from ferrum.graphs.expressions.expression import Dequant, Expr, ExpressionFault, Tensor, permute
from ferrum.graphs.expressions.schemes import scheme_of
from ferrum.graphs.weights.checkpoint import Checkpoint

GROUPS = (32, 64, 128)
_METHODS = ("gptq", "awq")


def packing_fault(config: Mapping[str, Any]) -> str:
    """Why a folder's ``quantization_config`` cannot be read, with the method's name; empty when it can, or there is none."""
    given = config.get("quantization_config")
    if given is None:
        return ""
    values = given if isinstance(given, Mapping) else {}
    method, bits = values.get("quant_method", "no named method"), values.get("bits", values.get("w_bit"))
    details = [values.get("quant_type"), values.get("format"), values.get("bnb_4bit_quant_type")]
    details += [f"{bits} bits"] if isinstance(bits, int) else []
    reasons = _reasons(values, bits) if method in _METHODS else ["not read yet"]
    named = ", ".join(str(word)[:40] for word in (method, *details) if isinstance(word, str) and word)
    return f"quantization_config: {named} ({', '.join(reasons)})" if reasons else ""


def _reasons(values: Mapping[str, Any], bits: object) -> list[str]:
    group, version = values.get("group_size", values.get("q_group_size")), values.get("version", "gemm")
    layout = values.get("checkpoint_format", "gptq")
    wrong = {
        "4 bits are read": bits != 4 or isinstance(bits, bool),
        f"groups of {group!s:.20} are not read yet": group not in GROUPS or isinstance(group, bool),
        "desc_act is not read yet": values.get("desc_act", False) is not False,
        "modules of other formats (dynamic) are not read yet": bool(values.get("dynamic")),
        f"checkpoint_format {layout!s:.20} is not read yet": layout not in ("gptq", "gptq_v2"),
        f"version {version!s:.20} is not read yet": str(version).lower() != "gemm",
        "zero_point = false is not read yet": values.get("zero_point", True) is not True,
    }
    return [reason for reason, is_so in wrong.items() if is_so]


def unpacked(checkpoint: Checkpoint, config: Mapping[str, Any]) -> Checkpoint:
    """The same with what the model's tensors are of those stored.

    Raises FerrumError: format-unsupported for groups that are no neighbours, checkpoint-corrupt for tensors that do not belong
    together.
    """
    values = config.get("quantization_config")
    if not isinstance(values, Mapping) or packing_fault(config):
        return checkpoint
    group = int(values.get("group_size", values.get("q_group_size", 0)))
    plain = values.get("checkpoint_format", "gptq") == "gptq_v2"
    kind = "awq" if values["quant_method"] == "awq" else "int4" if plain else "gptq"
    meanings: dict[str, Expr] = {}
    aside = set()
    for name in checkpoint.names():
        stem, _, part = name.rpartition(".")
        if part == "qweight":
            meanings[f"{stem}.weight"] = _weight(checkpoint, stem, kind, group)
        elif part == "g_idx":
            _check_order(checkpoint, name, group)
            aside.add(name)
        elif part not in ("qzeros", "scales"):
            meanings[name] = Tensor(name, checkpoint.info(name)[1])
    return replace(checkpoint, meanings=meanings, aside=frozenset(aside))


def _weight(checkpoint: Checkpoint, stem: str, kind: str, group: int) -> Expr:
    parts = []
    for part in ("qweight", "scales", "qzeros"):
        dtype, shape = checkpoint.info(f"{stem}.{part}")
        parts.append(Tensor(f"{stem}.{part}", shape, "f32" if part == "scales" and dtype != "f16" else dtype))
    scheme = scheme_of(kind, group)
    assert scheme is not None
    try:
        made = permute(Dequant(scheme, tuple(parts)), (1, 0))
        made.type  # noqa: B018 - its faults
    except ExpressionFault as fault:
        where = checkpoint.folder.name
        raise FerrumError("checkpoint-corrupt", f"{stem}: {fault}", where, "check config.json and the weights") from None
    return made


def _check_order(checkpoint: Checkpoint, name: str, group: int) -> None:
    groups = checkpoint.read(name).reshape(-1)
    if not np.array_equal(groups, np.arange(len(groups)) // group):
        what = f"{name} groups values that are no neighbours (desc_act), which is not read yet"
        raise FerrumError("format-unsupported", what, checkpoint.folder.name, "use a version without desc_act")
