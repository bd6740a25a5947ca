"""Attention over the paged cache for any head size and float32 caches: a warp per query row and head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ferrum.codegen.kernels.gpu import ONE, WARP, Geometry
from ferrum.codegen.kernels.paged_attention.gpu import GpuAttention
from ferrum.pack.launches import RowCounts, Rows, Term

_WARPS = 4


@dataclass(frozen=True)
class PlainAttention(GpuAttention):
    """Lanes share the channels of a key; one sum over the warp a key."""

    stem: ClassVar[str] = "paged_attention_plain"

    @property
    def args(self) -> tuple[str, ...]:
        arrays = ("input:positions", self.table, "limit:blocks_per_seq")
        return ("count", "value:0", *arrays, "scratch:token_seq", "state", "result")

    def geometry(self, rows: Rows) -> Geometry:
        return Geometry(((Term(rows, 1),), (Term("one", -(-self.num_heads // _WARPS)),), ONE), (WARP * _WARPS, 1, 1))

    def prepare(self, arrays: dict[str, NDArray[np.generic]], rows: RowCounts) -> RowCounts:
        arrays["count"] = arrays["input:num_tokens"]
        return rows

    def why(self) -> str:
        return f"head size {self.head_dim} and {self.kv_dtype} keys have no matrix instruction: a warp per row and head"

    def context(self) -> dict[str, object]:
        options = {"values": self.head_dim, "softcap": "", "sinks": "", "slopes": "", "numbers": []}
        return super().context() | options | {"warps": _WARPS, "per_lane": -(-self.head_dim // WARP)}
