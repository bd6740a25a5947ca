"""A linear recurrence on CPUs: each head of each sequence goes token by token over its state, which is one place of a pool."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ferrum.codegen.kernels.arrays import ArrayKernel, Operand, Operands
from ferrum.codegen.walk import Walk, number
from ferrum.graphs.ir import Node


@dataclass(frozen=True)
class Recur(ArrayKernel):
    """Of each row ``q, k [heads, K], v [heads, V], decay [heads, K or 1]``, by the delta rule ``beta [heads]`` → ``[heads, V]``.

    A place holds ``[heads, K, V]`` in float32, whatever the cache's format; it counts as zeros at a sequence's first token.
    """

    stem: ClassVar[str] = "recur"
    q: Operand
    k: Operand
    v: Operand
    decay: Operand
    beta: Operand
    out: Operand
    pool: int
    delta: bool

    @property
    def args(self) -> tuple[str, ...]:
        return (*super().args, "state")

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Heads, K and V."""
        return (*self.k.dims, self.v.dims[1])  # type: ignore[return-value]

    @property
    def head_bytes(self) -> int:
        """A head's part of a place."""
        _, keys, values = self.sizes
        return 4 * keys * values

    @property
    def flops(self) -> int:
        heads, keys, values = self.sizes
        return (8 if self.delta else 5) * heads * keys * values

    def context(self) -> dict[str, object]:
        heads, keys, values = self.sizes
        return {"heads": heads, "keys": keys, "values": values, "head_bytes": self.head_bytes, "own": self.decay.dims[1] > 1}

    def why(self) -> str:
        return "generic: a head of a sequence is an item, and its tokens follow each other"


def choose(walk: Walk, node: Node) -> None:
    found, delta = Operands(walk, node), bool(node.attrs["delta"])
    q, k, v, decay = found.read[:4]
    pool = walk.kept[int(number(node, "layer"))].group
    found.add(Recur(q, k, v, decay, found.read[4] if delta else decay, found.result(), pool, delta))
