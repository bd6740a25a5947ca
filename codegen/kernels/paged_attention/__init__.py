"""Causal attention over the paged cache: the op, and one file for each kernel of it."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field

import numpy as np

from ferrum.codegen.kernels.base import F32, Kernel

BLOCK_SIZE = 16
KV_BYTES = {"f32": 4, "bf16": 2, "int8": 1}


@dataclass(frozen=True)
class PagedAttention(Kernel):
    """``[T, ...] -> [T, num_heads * head_dim]``. ``window`` 0 attends to everything before; ``kv_dtype`` is that of the cache.

    ``pool``: the number of the group whose blocks it reads. Of a window, no block is read that its oldest query has passed.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    window: int
    softmax_scale: float
    kv_dtype: str
    pool: int = field(default=0, kw_only=True)

    @property
    def group(self) -> int:
        """Query heads that share a KV head."""
        return self.num_heads // self.num_kv_heads

    @property
    def table(self) -> str:
        """The argument that is the block table."""
        return f"table:{self.pool}"

    @property
    def element_bytes(self) -> int:
        return KV_BYTES[self.kv_dtype]

    @property
    @abstractmethod
    def head_bytes(self) -> int:
        """Keys and values of one KV head in one block."""

    @staticmethod
    def reference(q: F32, k: F32, v: F32, scale: float, window: int) -> F32:
        """One sequence, after norm and rotation: ``q [T, H, D]``, ``k, v [L, Hkv, D]``, the last T of L positions."""
        tokens, length, group = q.shape[0], k.shape[0], q.shape[1] // k.shape[1]
        position = np.arange(length - tokens, length)[:, None]
        key = np.arange(length)[None]
        allowed = (key <= position) & ((key > position - window) if window else True)
        scores = np.einsum("thd,lhd->htl", q, np.repeat(k, group, 1), dtype=np.float64) * scale
        scores = np.where(allowed, scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        return np.einsum("htl,lhd->thd", weights, np.repeat(v, group, 1)).astype(np.float32)
