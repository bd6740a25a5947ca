"""Attention of sequences with one new token: the query heads of a group in one matrix tile, the context split over blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ferrum.codegen.kernels.cases import Case, counts
from ferrum.codegen.kernels.gpu import WARP, Geometry, Scratch
from ferrum.codegen.kernels.paged_attention import BLOCK_SIZE
from ferrum.codegen.kernels.paged_attention.gpu import GpuAttention, Lengths
from ferrum.pack.launches import RowCounts, Rows, Term

# (most sequences, blocks that a split should have at least): below, merging costs more than it saves. Few sequences leave most
# of a GPU empty, so their splits may be as small as one block a warp, or where nothing is copied 32 keys.
_MIN_SPLIT_BLOCKS = ((4, 4), (16, 8), (0, 16))
_COPYLESS_MIN_SPLIT_BLOCKS = ((4, 8), (0, 16))


@dataclass(frozen=True)
class DecodeAttention(GpuAttention):
    """A block per (KV head, sequence, split); warps take KV blocks in turn, each with a streamed softmax of its own.

    ``splits``: most parts of one context; how many are used follows from its length. ``max_seqs`` bounds the sequences of
    the size class (0: the limits), for the scratch. ``stages`` KV blocks of each warp are under way; with 0 nothing is copied,
    and there are only the rows of the group to merge.
    """

    stem: ClassVar[str] = "paged_attention_decode"
    splits: int
    max_seqs: int
    warps: int
    stages: int

    @property
    def args(self) -> tuple[str, ...]:
        arrays = ("input:query_start", "input:context_len", self.table, "limit:blocks_per_seq")
        merge = ("scratch:attention_parts", "scratch:attention_arrivals") if self.splits > 1 else ()
        return ("input:num_seqs", "value:0", *arrays, "state", *merge, "result")

    @property
    def value_stride(self) -> int:
        """Bytes between the rows of values in shared memory: eight rows of 16 bytes fall into different banks."""
        return 2 * self.head_dim + 16

    @property
    def stage_bytes(self) -> int:
        return BLOCK_SIZE * (2 * self.head_dim + self.value_stride)

    @property
    def part_floats(self) -> int:
        """One split of one KV head: sums, then peak and total of each query head."""
        return self.group * (self.head_dim + 2)

    @property
    def min_split_blocks(self) -> int:
        classes = _MIN_SPLIT_BLOCKS if self.stages else _COPYLESS_MIN_SPLIT_BLOCKS
        return next(least for most, least in classes if not most or 0 < self.max_seqs <= most)

    def geometry(self, rows: Rows) -> Geometry:
        ring = self.warps * self.stages * self.stage_bytes
        merge = 4 * self.warps * (16 if self.stages else self.group) * (self.head_dim + 2)
        grid = ((Term("one", self.num_kv_heads),), (Term("seqs", 1),), (Term("one", self.splits),))
        return Geometry(grid, (WARP * self.warps, 1, 1), max(ring, merge))

    def scratch(self) -> dict[str, Scratch]:
        if self.splits == 1:
            return {}
        rows: Rows = "one" if self.max_seqs else "seqs"
        heads = self.num_kv_heads * (self.max_seqs or 1)
        return {
            "attention_parts": Scratch((Term(rows, 4 * heads * self.splits * self.part_floats),)),
            "attention_arrivals": Scratch((Term(rows, 4 * heads),), zero=True),
        }

    def owns(self, new: NDArray[np.int64]) -> NDArray[np.bool_]:
        return new == 1

    def prepare(self, arrays: dict[str, NDArray[np.generic]], rows: RowCounts) -> RowCounts:
        seqs = min(rows.seqs, self.max_seqs) if self.max_seqs else rows.seqs
        return counts(rows.tokens, seqs, blocks_per_seq=rows.blocks_per_seq)

    def case(self, random: np.random.Generator, lengths: Lengths = (), **how: Any) -> Case:
        lengths = lengths or self.usual_lengths
        return super().case(random, lengths[: self.max_seqs] if self.max_seqs else lengths)

    def why(self) -> str:
        return (
            f"{self.group} query heads share each key and value in one matrix tile; contexts in up to {self.splits} splits of at "
            f"least {self.min_split_blocks * BLOCK_SIZE} keys, merged in order by the last to finish"
        )

    def expects(self) -> dict[str, int]:
        return {"HMMA": self.head_dim // 8, "LDGSTS": 2, "LDSM": self.head_dim // 16}

    def context(self) -> dict[str, object]:
        return super().context() | {
            "value_stride": self.value_stride,
            "stage_bytes": self.stage_bytes,
            "part_floats": self.part_floats,
            "min_split_blocks": self.min_split_blocks,
            # else every key block reads it again, from the cache: sums of large heads take the registers
            "q_in_registers": self.head_dim <= 128,
        }
