"""Attention of sequences with several new tokens: tiles of query rows against tiles of keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ferrum.codegen.kernels.gpu import ONE, WARP, Geometry
from ferrum.codegen.kernels.paged_attention.gpu import GpuAttention, Lengths
from ferrum.codegen.kernels.schedule import Schedule, tile_tokens
from ferrum.pack.launches import RowCounts, Rows, Term, total


@dataclass(frozen=True)
class PrefillAttention(GpuAttention):
    """A block per (tile, KV head): rows are (token, head of the group), 16 a warp; ``keys`` keys at a time, two tiles deep."""

    stem: ClassVar[str] = "paged_attention_prefill"
    usual_lengths: ClassVar[Lengths] = ((130, 70), (9, 1), (40, 40))
    warps: int
    keys: int

    @property
    def args(self) -> tuple[str, ...]:
        tiles = f"scratch:{Schedule(self.tile_tokens).tiles_name}"
        return ("value:0", "input:positions", self.table, "limit:blocks_per_seq", tiles, "state", "result")

    @property
    def tile_tokens(self) -> int:
        return tile_tokens(self.group, self.warps)

    @property
    def value_stride(self) -> int:
        return 2 * self.head_dim + 16

    @property
    def stage_bytes(self) -> int:
        return self.keys * (2 * self.head_dim + self.value_stride)

    def geometry(self, rows: Rows) -> Geometry:
        tiles = (Term("tokens", 1, self.tile_tokens), Term("seqs", 1))
        return Geometry((tiles, (Term("one", self.num_kv_heads),), ONE), (WARP * self.warps, 1, 1), 2 * self.stage_bytes)

    def owns(self, new: NDArray[np.int64]) -> NDArray[np.bool_]:
        return new > 1

    def prepare(self, arrays: dict[str, NDArray[np.generic]], rows: RowCounts) -> RowCounts:
        schedule = Schedule(self.tile_tokens)
        names = ("input:positions", "input:query_start", self.table)
        position, start, table = (arrays[name].astype(np.int32) for name in names)
        tiles = schedule.reference(position, start, table, self.tile_tokens, total(schedule.tiles, rows))[2]
        arrays[f"scratch:{schedule.tiles_name}"] = tiles
        return rows

    def why(self) -> str:
        return (
            f"tiles of {self.tile_tokens} tokens with the {self.group} heads that share a KV head, {self.keys} keys at a time; "
            "masks only where a tile meets the diagonal or the window"
        )

    def expects(self) -> dict[str, int]:
        return {"HMMA": self.head_dim // 8, "LDGSTS": 2, "LDSM": self.head_dim // 16}

    def context(self) -> dict[str, object]:
        return super().context() | {
            "tile_tokens": self.tile_tokens,
            "value_stride": self.value_stride,
            "stage_bytes": self.stage_bytes,
            "q_in_registers": self.head_dim <= 128,
        }
