"""Attention over the paged cache for any head size and float32 caches: a warp per query row and head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ferrum.codegen.kernels.gpu_attention import GpuAttention
from ferrum.codegen.kernels.gpu_base import ONE, WARP, Geometry
from ferrum.pack.launches import Rows, Term

_WARPS = 4


@dataclass(frozen=True)
class GpuPlainAttention(GpuAttention):
    """Lanes share the channels of a key; one sum over the warp a key."""

    stem: ClassVar[str] = "gpu_plain_attention"

    @property
    def args(self) -> tuple[str, ...]:
        arrays = ("input:positions", "input:block_table", "limit:blocks_per_seq")
        return ("count", "value:0", *arrays, "scratch:token_seq", "kv", "result")

    def geometry(self, rows: Rows) -> Geometry:
        return Geometry(((Term(rows, 1),), (Term("one", -(-self.num_heads // _WARPS)),), ONE), (WARP * _WARPS, 1, 1))

    def why(self) -> str:
        return f"head size {self.head_dim} and {self.kv_dtype} keys have no matrix instruction: a warp per row and head"

    def context(self) -> dict[str, object]:
        return super().context() | {"warps": _WARPS, "per_lane": -(-self.head_dim // WARP)}
