"""q/k-norm, rotation and the cache write of new tokens, in one pass over the joined projections."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from ferrum.codegen.kernels.base import F32, Cost, c_float
from ferrum.codegen.kernels.cases import Case, Written, counts, error, normal, poison, values_of
from ferrum.codegen.kernels.gpu import ONE, WARP, Geometry, GpuKernel
from ferrum.codegen.kernels.paged_attention import BLOCK_SIZE
from ferrum.codegen.kernels.schedule import slots_name
from ferrum.codegen.layouts import to_f32
from ferrum.codegen.layouts.activations import ActFormat
from ferrum.pack.launches import Rows, Term

_WARPS = 4


@dataclass(frozen=True)
class RopeKv(GpuKernel):
    """``qkv [T, (num_heads + 2 num_kv_heads) * head_dim] float32 -> q [T, num_heads * head_dim]``, keys and values to the cache.

    ``kv_dtype`` (f32 or bf16) is that of q, keys and values. A KV block of one head and layer is keys ``[16][head_dim]``, then
    values ``[16][head_dim]``; ``block_bytes`` is the distance between blocks of group ``pool``.
    """

    stem: ClassVar[str] = "rope_kv"
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_dim: int
    qk_norm: bool
    eps: float
    kv_dtype: str
    pool: int = field(default=0, kw_only=True)
    block_bytes: int

    @property
    def args(self) -> tuple[str, ...]:
        norms = ("weight:0", "weight:1") if self.qk_norm else ()
        return ("count", "value:0", "value:1", *norms, f"scratch:{slots_name(self.pool)}", "state", "result")

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
            "q_stride": ActFormat(self.kv_dtype).row_stride(self.num_heads * self.head_dim),
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

    def reduced(self) -> RopeKv:
        kv = min(self.num_kv_heads, 2)
        size = 2 * BLOCK_SIZE * self.head_dim * (2 if self.kv_dtype == "bf16" else 4) * kv
        return replace(self, num_heads=self.num_heads // self.num_kv_heads * kv, num_kv_heads=kv, block_bytes=2 * size)

    def case(self, random: np.random.Generator, rows: int = 5, **_: Any) -> Case:
        """Each token goes to another place of a block of its own; nothing else of the cache may change."""
        heads, kv, d = self.num_heads, self.num_kv_heads, self.head_dim
        x = normal(random, rows, heads + 2 * kv, d)
        angle = random.uniform(0, 6, (rows, self.rope_dim // 2)).astype(np.float32)
        table, norms = np.concatenate([np.cos(angle), np.sin(angle)], -1), [normal(random, d) for _ in range(2)]
        q = poison((rows, ActFormat(self.kv_dtype).row_stride(heads * d)), self.kv_dtype)
        slots = (random.permutation(rows) * BLOCK_SIZE + random.integers(0, BLOCK_SIZE, rows)).astype(np.int32)
        cache = np.full((rows, self.block_bytes), 0xFF, np.uint8)
        arrays = {"value:0": x.reshape(rows, -1), "value:1": table, "weight:0": norms[0], "weight:1": norms[1]}
        arrays |= {f"scratch:{slots_name(self.pool)}": slots, "state": cache, "result": q}

        def judge(scratch: Written) -> float:
            turned = [
                self.reference(x[:, part], norm if self.qk_norm else None, table, self.rope_dim, self.eps)
                for part, norm in ((slice(0, heads), norms[0]), (slice(heads, heads + kv), norms[1]))
            ]
            size = 2 if self.kv_dtype == "bf16" else 4
            layer = cache[:, : kv * 2 * BLOCK_SIZE * d * size].view(np.uint16 if size == 2 else np.float32)
            found = layer.reshape(rows, kv, 2, BLOCK_SIZE, d)
            written = found[slots // BLOCK_SIZE, :, :, slots % BLOCK_SIZE]  # token, head, key or value, channel
            if int((cache != 0xFF).sum()) > 2 * rows * kv * d * size:
                return float("inf")
            return max(
                error(values_of(q, heads * d), turned[0].reshape(rows, -1)),
                error(to_f32(np.ascontiguousarray(written[:, :, 0])), turned[1]),
                error(to_f32(np.ascontiguousarray(written[:, :, 1])), x[:, heads + kv :]),
            )

        return Case(arrays, counts(rows), judge)
