"""Keys and values that were made elsewhere into the cache, and queries as attention reads them, on GPUs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from ferrum.codegen.kernels.base import Cost
from ferrum.codegen.kernels.cases import Case, Written, counts, error, poison, values_of
from ferrum.codegen.kernels.gpu import ONE, WARP, Geometry, GpuKernel, parameters
from ferrum.codegen.kernels.paged_attention import BLOCK_SIZE, KV_BYTES
from ferrum.codegen.kernels.paged_attention.apart import Heads
from ferrum.codegen.kernels.schedule import slots_name
from ferrum.codegen.kernels.trials import draw
from ferrum.codegen.layouts import to_f32
from ferrum.codegen.layouts.activations import ActFormat
from ferrum.pack.launches import Rows, Term

_WARPS = 4


@dataclass(frozen=True)
class StoreKv(GpuKernel):
    """``q [T, num_heads, head_dim], k [T, num_kv_heads, head_dim], v [T, num_kv_heads, value_width]`` float32, wherever they lie,
    ``-> q [T, num_heads * head_dim]`` in ``kv_dtype``, keys and values to the cache, as ``RopeKv`` has them.
    """

    stem: ClassVar[str] = "store_kv"
    num_heads: int
    num_kv_heads: int
    head_dim: int
    value_width: int
    q: Heads
    k: Heads
    v: Heads
    kv_dtype: str
    pool: int = field(default=0, kw_only=True)
    block_bytes: int

    @property
    def values(self) -> list[str]:
        return [f"value:{i}" for i in sorted({self.q.value, self.k.value, self.v.value})]

    @property
    def args(self) -> tuple[str, ...]:
        return ("count", *self.values, f"scratch:{slots_name(self.pool)}", "state", "result")

    @property
    def heads(self) -> int:
        """Of queries, keys and values: each is a warp's."""
        return self.num_heads + 2 * self.num_kv_heads

    @property
    def head_bytes(self) -> int:
        """Keys and values of one KV head in one block."""
        return BLOCK_SIZE * (self.head_dim + self.value_width) * KV_BYTES[self.kv_dtype]

    def geometry(self, rows: Rows) -> Geometry:
        return Geometry(((Term(rows, 1),), (Term("one", -(-self.heads // _WARPS)),), ONE), (WARP * _WARPS, 1, 1))

    def cost(self) -> Cost:
        kept = self.num_kv_heads * (self.head_dim + self.value_width)
        return Cost(0, (self.num_heads * self.head_dim + kept) * (4 + KV_BYTES[self.kv_dtype]), 0)

    def why(self) -> str:
        return "generic: q, k and v were made elsewhere; a warp per head copies them"

    def context(self) -> dict[str, object]:
        stored = "u16" if self.kv_dtype == "bf16" else "float"
        typed = dict.fromkeys(self.values, "float") | {f"scratch:{slots_name(self.pool)}": "int"}
        return {
            "params": [*parameters(typed), "u8 *state", f"{stored} *result"],
            "slot_name": f"scratch_{slots_name(self.pool)}",
            "stored": stored,
            "warps": _WARPS,
            "block_size": BLOCK_SIZE,
            "head_bytes": self.head_bytes,
            "q_stride": ActFormat(self.kv_dtype).row_stride(self.num_heads * self.head_dim),
        }

    def case(self, random: np.random.Generator, rows: int = 5, **_: Any) -> Case:
        """Each token goes to another place of a block of its own; nothing else of the cache may change."""
        kv, d, width = self.num_kv_heads, self.head_dim, self.value_width
        lying = [self.q.lies(self.num_heads, d), self.k.lies(kv, d), self.v.lies(kv, width)]
        arrays = draw(random, lying, rows)
        q, keys, values = (lies.seen(arrays[lies.arg], rows).astype(np.float32) for lies in lying)
        slots = (random.permutation(rows) * BLOCK_SIZE + random.integers(0, BLOCK_SIZE, rows)).astype(np.int32)
        cache = np.full((rows, self.block_bytes), 0xFF, np.uint8)
        result = poison((rows, ActFormat(self.kv_dtype).row_stride(self.num_heads * d)), self.kv_dtype)
        arrays |= {f"scratch:{slots_name(self.pool)}": slots, "state": cache, "result": result}
        size, dtype = KV_BYTES[self.kv_dtype], np.uint16 if self.kv_dtype == "bf16" else np.float32

        def judge(scratch: Written) -> float:
            heads = cache[:, : kv * self.head_bytes].view(dtype).reshape(rows, kv, BLOCK_SIZE * (d + width))
            found = heads[slots // BLOCK_SIZE]
            at = slots % BLOCK_SIZE
            own = np.stack([found[i, :, n * d : (n + 1) * d] for i, n in enumerate(at)])
            start = BLOCK_SIZE * d
            kept = np.stack([found[i, :, start + n * width : start + (n + 1) * width] for i, n in enumerate(at)])
            if int((cache != 0xFF).sum()) > rows * kv * (d + width) * size:
                return float("inf")
            return max(
                error(values_of(result, self.num_heads * d), q.reshape(rows, -1)),
                error(to_f32(np.ascontiguousarray(own)).reshape(keys.shape), keys),
                error(to_f32(np.ascontiguousarray(kept)).reshape(values.shape), values),
            )

        return Case(arrays, counts(rows), judge)
