"""Maps: elements computed one by one from others, each row alone: the generic kernel of what is pointwise or only moves data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ferrum.codegen.kernels.base import Cost
from ferrum.codegen.kernels.cases import Case
from ferrum.codegen.kernels.cpu import CpuKernel
from ferrum.codegen.kernels.gpu import Geometry, GpuKernel, blocks_of, item_threads, parameter, parameters, per_item
from ferrum.codegen.kernels.map.body import Body
from ferrum.codegen.kernels.map.trial import trial
from ferrum.codegen.layouts.activations import ActFormat
from ferrum.pack.launches import Rows

# Elements of a row that every thread computes for itself when rows are few; longer rows are cut in pieces that threads share.
_ALONE = 4096
PIECE = 1024
_LONG = 1 << 15  # elements of a row of which one is tried, not several


@dataclass(frozen=True)
class Map(CpuKernel, GpuKernel):
    """``rows of operands -> act [rows, k]``; ``own``: the first operand has a row for each row of the result.

    On GPUs a thread computes an element; where a part writes over another one, a block has the whole row.
    """

    stem: ClassVar[str] = "map"
    elements: ClassVar[bool] = True
    k: int
    body: Body
    act: ActFormat
    own: bool

    @property
    def args(self) -> tuple[str, ...]:
        return ("count", *self.body.operands, "result")

    @property
    def row_wise(self) -> bool:  # type: ignore[override]
        return self.k <= _ALONE or self.act.kind != "f32" or len(self.body.parts) > 1

    @property
    def reads_private(self) -> bool:  # type: ignore[override]
        return self.own and self.row_wise

    @property
    def pieces(self) -> int:
        """Into how many units a row is cut: runs of its first axis."""
        if self.row_wise:
            return 1
        (part,) = self.body.parts
        return -(-part.dims[0] // self.piece)

    @property
    def piece(self) -> int:
        """Indices of the first axis in a unit."""
        (first, *_) = self.body.parts[0].dims or (1,)
        return max(1, PIECE * first // self.k)

    def cost(self) -> Cost:
        """Every operand is read once where it lies."""
        read = sum(part_bytes(part.dims) * len(part.operands) for part in self.body.parts)
        operations = sum(part_bytes(part.dims) // 4 * max(1, len(part.statements)) for part in self.body.parts)
        return Cost(0, read + self.act.row_bytes(self.k), operations)

    def why(self) -> str:
        operations = [node.op for part in self.body.parts for node in (part.region.nodes if part.region else ()) if node.inputs]
        does = ", ".join(operations[:6]) + (f" and {len(operations) - 6} more" if len(operations) > 6 else "")
        return f"generic: {does or 'moves elements'}, in one pass over {self.k} elements a row"

    def context(self) -> dict[str, object]:
        named = {"parts": self.body.parts, "operands": self.body.operands, "pieces": self.pieces, "piece": self.piece}
        return named | {"own_rows": self.row_wise, "own": self.reads_private} | self._gpu_context()

    @property
    def overlaps(self) -> bool:
        """Whether a part writes over what another one wrote."""
        return sum(math.prod(part.dims) for part in self.body.parts) > self.k

    @property
    def threads(self) -> int:
        return item_threads(self.k)

    @property
    def blocks(self) -> int:
        """Blocks of a row."""
        return 1 if self.overlaps else blocks_of(self.k, self.threads)

    def geometry(self, rows: Rows) -> Geometry:
        return per_item(rows, self.blocks * self.threads, self.threads)

    def _gpu_context(self) -> dict[str, object]:
        types = {operand.arg: operand.stored.replace("int32_t", "int") for part in self.body.parts for operand in part.operands}
        stored = "u16" if self.act.kind == "bf16" else "float" if self.body.parts[0].dtype == "f32" else "int"
        return {
            "params": parameters({arg: types[arg] for arg in self.body.operands} | {"result": stored}),
            "parameter": parameter,
            "threads": self.threads,
            "blocks": self.blocks,
            "overlaps": self.overlaps,
            "stride": self.act.row_stride(self.k) if self.act.kind in ("f32", "bf16") else 0,
        }

    def case(self, random: np.random.Generator, rows: int = 3, **_: Any) -> Case:
        return trial(self.body, self.k, self.act, random, rows if self.k < _LONG else 1)


def part_bytes(dims: tuple[int, ...]) -> int:
    size = 4
    for dim in dims:
        size *= dim
    return size
