"""Shapes of ``sample``: logits and the step's parameters of sampling in, the step's outputs out."""

from __future__ import annotations

from ferrum.graphs.ir import Region
from ferrum.graphs.op_spec import Attrs, Inputs, Typed, need, show
from ferrum.graphs.step_arrays import step_value
from ferrum.pack.step import OUTPUTS, SAMPLING

ARITY = 1 + len(SAMPLING)


def sample(x: Inputs, _: Attrs, __: tuple[Region, ...]) -> tuple[Typed, ...]:
    logits, *given = x
    vocab = logits.shape[-1] if logits.shape else 0
    need(logits.dtype == "f32" and len(logits.shape) == 2, f"logits are f32 rows, not {logits.dtype}{show(logits.shape)}")
    need(logits.shape[0] == "samples" and isinstance(vocab, int), f"logits of {show(logits.shape)}, not of ['samples', tokens]")
    for array, value in zip(SAMPLING, given, strict=True):
        wanted = step_value(array, int(vocab))
        same = (value.dtype, value.shape) == (wanted.dtype, wanted.shape)
        need(same, f"{array.name} is {value.dtype}{show(value.shape)}, not {wanted.dtype}{show(wanted.shape)}")
    return tuple((value.dtype, value.shape) for value in map(step_value, OUTPUTS))
