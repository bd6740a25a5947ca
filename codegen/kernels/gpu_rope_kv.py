"""q/k-norm, rotation and the cache write of new tokens on GPUs, in one pass over the joined projections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ferrum.codegen.kernels.base import F32, Cost, c_float
from ferrum.codegen.kernels.gpu_base import ONE, WARP, Geometry, GpuKernel, row_stride
from ferrum.codegen.kernels.paged_attention import BLOCK_SIZE
from ferrum.pack.launches import Rows, Term

_WARPS = 4


@dataclass(frozen=True)
class GpuRopeKv(GpuKernel):
    """``qkv [T, (num_heads + 2 num_kv_heads) * head_dim] float32 -> q [T, num_heads * head_dim]``, keys and values to the cache.

    ``kv_dtype`` (f32 or bf16) is that of q, keys and values. A KV block of one head and layer is keys ``[16][head_dim]``, then
    values ``[16][head_dim]``; ``block_bytes`` is the distance between blocks.
    """

    stem: ClassVar[str] = "gpu_rope_kv"
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_dim: int
    qk_norm: bool
    eps: float
    kv_dtype: str
    block_bytes: int

    @property
    def args(self) -> tuple[str, ...]:
        norms = ("weight:0", "weight:1") if self.qk_norm else ()
        return ("count", "value:0", "value:1", *norms, "scratch:token_slot", "kv", "result")

    def geometry(self, rows: Rows) -> Geometry:
        heads = self.num_heads + 2 * self.num_kv_heads
        return Geometry(((Term(rows, 1),), (Term("one", -(-heads // _WARPS)),), ONE), (WARP * _WARPS, 1, 1))

    def cost(self) -> Cost:
        width, size = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim, 2 if self.kv_dtype == "bf16" else 4
        return Cost(0, width * (4 + size), 8 * width)

    def why(self) -> str:
        return "a warp per head: norm, rotation and cache write read the projection once"

    def context(self) -> dict[str, object]:
        return {
            "warps": _WARPS,
            "block_size": BLOCK_SIZE,
            "q_stride": row_stride(self.kv_dtype, self.num_heads * self.head_dim),
            "half": self.rope_dim // 2,
            "eps": c_float(self.eps),
        }

    @staticmethod
    def reference(x: F32, norm: F32 | None, table: F32, rope_dim: int, eps: float) -> F32:
        """Heads ``x [T, heads, D]`` after norm and rotation; ``table [T, rope_dim]``."""
        if norm is not None:
            x = (x / np.sqrt(np.square(x.astype(np.float64)).mean(-1, keepdims=True) + eps) * norm).astype(np.float32)
        half = rope_dim // 2
        cosine, sine = table[:, None, :half], table[:, None, half:]
        a, b = x[..., :half], x[..., half:rope_dim]
        return np.concatenate([a * cosine - b * sine, b * cosine + a * sine, x[..., rope_dim:]], -1).astype(np.float32)
