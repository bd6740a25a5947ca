"""Activation rows from float32 to the format of the product that follows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ferrum.codegen.kernels.base import F32, Cost
from ferrum.codegen.kernels.cases import Case, normal, rows_case
from ferrum.codegen.kernels.rows import ActRows, narrower
from ferrum.codegen.layouts import to_bf16, to_f32
from ferrum.codegen.layouts.activations import ActFormat, parse_act
from ferrum.codegen.walk import Walk
from ferrum.graphs.ir import Node


@dataclass(frozen=True)
class Quantize(ActRows):
    """``x [rows, k] float32 -> act [rows, k]``."""

    stem: ClassVar[str] = "quantize"
    k: int
    act: ActFormat

    @property
    def args(self) -> tuple[str, ...]:
        return ("count", "value:0", "result")

    def cost(self) -> Cost:
        return self.row_cost(0, 3)

    def why(self) -> str:
        return f"{self.k} channels to {self.act.name}, once for all rows of the weight: their producer has no format of its own"

    @staticmethod
    def reference(x: F32, act: ActFormat) -> F32:
        """The float32 values that the stored row means."""
        if act.kind == "f32":
            return x
        if act.kind == "bf16":
            return to_f32(to_bf16(x))
        padded = np.pad(x, ((0, 0), (0, act.padded_k(x.shape[1]) - x.shape[1])))
        groups = padded.reshape(len(x), -1, act.group)
        scale = np.abs(groups).max(-1, keepdims=True) / np.float32(127)
        q = np.rint(np.divide(groups, scale, out=np.zeros_like(groups), where=scale > 0))
        return (q * scale).reshape(padded.shape)[:, : x.shape[1]].astype(np.float32)

    def case(self, random: np.random.Generator, rows: int = 3, **_: Any) -> Case:
        x = normal(random, rows, self.k)
        return rows_case({"value:0": x}, self.reference(x, self.act), self.act.kind)

    reduced = narrower


def choose(walk: Walk, node: Node) -> None:
    k, act = walk.width(node.output.name), parse_act(str(node.attrs["act"]))
    walk.add(node, Quantize(k, act), node.inputs, (), walk.row_bytes(act, k))
