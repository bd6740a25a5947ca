"""A linear recurrence: each head of each sequence goes token by token over its state, which is one place of a pool."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ferrum.codegen.kernels.arrays import ArrayKernel, Operand, Operands
from ferrum.codegen.kernels.cases import Case, Written, counts, error
from ferrum.codegen.kernels.gpu import ONE, Geometry, GpuKernel, blocks_of, item_threads, parameter, parameters
from ferrum.codegen.kernels.trials import draw
from ferrum.codegen.target import GpuTarget
from ferrum.codegen.walk import Walk, number
from ferrum.graphs.ir import Node
from ferrum.graphs.numpy_recur import recurred
from ferrum.pack.launches import Rows, Term

_LENGTHS = (1, 6, 3)  # of a trial's sequences; the last one goes on


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


@dataclass(frozen=True)
class GpuRecur(Recur, GpuKernel):
    """On GPUs a thread has a column of a head's state, ``[K]`` of one of its V: columns know nothing of each other.

    ``block_bytes``: from one place of the pool to the next.
    """

    block_bytes: int

    @property
    def args(self) -> tuple[str, ...]:
        arrays = ("input:num_seqs", "input:query_start", "input:positions", f"table:{self.pool}")
        return (*super().args, *arrays, "limit:blocks_per_seq")

    @property
    def items(self) -> int:
        heads, _, values = self.sizes
        return heads * values

    @property
    def threads(self) -> int:
        return item_threads(self.items)

    def geometry(self, rows: Rows) -> Geometry:
        return Geometry(((Term("seqs", blocks_of(self.items, self.threads)),), ONE, ONE), (self.threads, 1, 1))

    def why(self) -> str:
        return "generic: a column of a head's state is a thread's, and tokens follow each other"

    def context(self) -> dict[str, object]:
        read = {operand.arg: operand.gpu_type for operand in self.operands}
        given = parameters(read | dict.fromkeys(self.args[len(super().args) : -1], "int"))
        state = len(read) + 1  # behind the count and the operands
        return super().context() | {
            "params": [*given[:state], "u8 *state", *given[state:], "int blocks_per_seq"],
            "table": parameter(f"table:{self.pool}"),
            "threads": self.threads,
            "blocks": blocks_of(self.items, self.threads),
            "items": self.items,
        }

    def case(self, random: np.random.Generator, **_: Any) -> Case:
        """Places in any order; what is before a sequence's first token counts as zeros, whatever is there."""
        starts, (heads, keys, values) = np.cumsum((0, *_LENGTHS)).astype(np.int32), self.sizes
        tokens, seqs = int(starts[-1]), len(_LENGTHS)
        lying = [operand.lies() for operand in self.operands[:-1]]
        arrays = draw(random, lying, tokens)
        table = random.permutation(seqs).astype(np.int32)
        pool = random.normal(size=(seqs, self.block_bytes // 4)).astype(np.float32)
        held = [pool[place, : heads * keys * values].reshape(heads, keys, values).astype(np.float64) for place in table]
        first = np.array([0] * (seqs - 1) + [5])
        positions = np.concatenate([start + np.arange(n) for start, n in zip(first, _LENGTHS, strict=True)]).astype(np.int32)
        read = [lies.seen(arrays[lies.arg], tokens).astype(np.float64) for lies in lying[: 5 if self.delta else 4]]
        ends = []
        for seq in range(seqs):
            state = held[seq] if first[seq] else np.zeros_like(held[seq])
            ends.append(recurred(state, *(x[starts[seq] : starts[seq + 1]] for x in read)))
        result = np.full((tokens, heads * values), np.nan, np.float32)
        arrays |= {
            "state": pool.view(np.uint8), "input:query_start": starts, "input:positions": positions,
            f"table:{self.pool}": table, "result": result,
        }  # fmt: skip

        def judge(scratch: Written) -> float:
            kept = pool[table, : heads * keys * values].reshape(seqs, heads, keys, values)
            states = np.stack([state for state, _ in ends])
            rows = np.concatenate([rows for _, rows in ends]).reshape(tokens, -1)
            return max(error(result, rows.astype(np.float32)), error(kept, states.astype(np.float32)))

        return Case(arrays, counts(tokens, seqs), judge)


def choose(walk: Walk, node: Node) -> None:
    found, delta = Operands(walk, node), bool(node.attrs["delta"])
    q, k, v, decay = found.read[:4]
    pool = walk.kept[int(number(node, "layer"))].group
    fields = (q, k, v, decay, found.read[4] if delta else decay, found.result(), pool, delta)
    if isinstance(walk.target, GpuTarget):
        kept = (kept for kept in walk.kept.values() if kept.group == pool)
        found.add(GpuRecur(*fields, block_bytes=4 * sum(kept.heads * kept.width * kept.value_width for kept in kept)))
    else:
        found.add(Recur(*fields))
