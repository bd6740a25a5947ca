"""Attention of sequences with several new tokens: tiles of query rows against tiles of keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ferrum.codegen.kernels.gpu_attention import GpuAttention
from ferrum.codegen.kernels.gpu_base import ONE, WARP, Geometry
from ferrum.pack.launches import Rows, Term


def tile_tokens(group: int, warps: int) -> int:
    """Query tokens of one tile: with all heads of a group they fill 16 rows a warp."""
    return max(1, 16 * warps // group)


@dataclass(frozen=True)
class GpuPrefillAttention(GpuAttention):
    """A block per (tile, KV head): rows are (token, head of the group), 16 a warp; ``keys`` keys at a time, two tiles deep."""

    stem: ClassVar[str] = "gpu_prefill_attention"
    warps: int
    keys: int

    @property
    def args(self) -> tuple[str, ...]:
        arrays = ("input:positions", "input:block_table", "limit:blocks_per_seq", "scratch:tiles")
        return ("value:0", *arrays, "kv", "result")

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
