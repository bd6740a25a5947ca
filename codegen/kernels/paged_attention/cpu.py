"""Attention on CPUs, with q/k-norm, rotation and the cache write fused in."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from ferrum.codegen.kernels.base import OPTIONAL, Cost, c_float
from ferrum.codegen.kernels.cpu import CpuKernel
from ferrum.codegen.kernels.paged_attention import BLOCK_SIZE, PagedAttention
from ferrum.pack.launches import Sync

PART = 1024  # keys with sums of their own: a few dozen microseconds of work, and thousands of products for each merge
_TILE_ROWS = 48
_TILE = 16  # rows of a tile register, and words of four bytes in a row


@dataclass(frozen=True)
class CpuAttention(PagedAttention, CpuKernel):
    """``qkv [T, (num_heads + 2 num_kv_heads) * head_dim] -> [T, num_heads * head_dim]``.

    ``kv_dtype`` f32, bf16 or int8 (a scale for each token and head). ``bf16_dot``: the target multiplies pairs of bfloat16; else
    q and p stay float32. Beside an int8 cache they become bytes. ``sums`` vectors of scores are held in registers: six rows by
    four vectors of keys (of 24); where keys are widened as they are loaded, twelve by two, so that more rows share that. Values
    are padded to whole vectors, or to ``value_step`` where the cache is laid out for wider ones. With ``tiles`` both products
    are made in tile registers, of up to 16 rows and one block of a bfloat16 cache each.
    """

    stem: ClassVar[str] = "paged_attention"
    rope_dim: int
    qk_norm: bool
    eps: float
    bf16_dot: bool
    lanes: int
    sums: int
    value_step: int = field(default=0, kw_only=True, metadata=OPTIONAL)
    tiles: bool = field(default=False, kw_only=True, metadata=OPTIONAL)

    @property
    def args(self) -> tuple[str, ...]:
        norms = ("weight:0", "weight:1") if self.qk_norm else ()
        return ("count", "value:0", "value:1", *norms, "state", "result")

    @property
    def parts(self) -> tuple[tuple[str, Sync], ...]:
        """A phase that writes keys and values of prompts, then attention, which writes those of decoding sequences itself."""
        return (("_kv_write", "prefill"), ("", "always"))

    @property
    def scale_bytes(self) -> int:
        """float32 scales of a block's keys and values."""
        return 2 * 4 * BLOCK_SIZE if self.kv_dtype == "int8" else 0

    @property
    def value_dim(self) -> int:
        """Elements of a head's value."""
        return self.head_dim

    @property
    def padded_d(self) -> int:
        step = self.value_step or self.lanes
        return -(-self.value_dim // step) * step

    @property
    def packed(self) -> int:
        """Values of the reduced index that lie side by side."""
        return 4 // self.element_bytes

    @property
    def key_steps(self) -> int:
        return -(-self.head_dim // self.packed)

    @property
    def key_bytes(self) -> int:
        return BLOCK_SIZE * self.key_steps * 4

    @property
    def head_bytes(self) -> int:
        """Keys and values of one KV head in one block."""
        return self.key_bytes + BLOCK_SIZE * self.padded_d * self.element_bytes + self.scale_bytes

    @property
    def widened(self) -> bool:
        """Keys and values become floats between memory and product."""
        return self.kv_dtype == "f32" or (self.kv_dtype == "bf16" and not self.bf16_dot)

    @property
    def mr(self) -> int:
        """Rows of a register block."""
        if self.tiles:
            return _TILE
        return self.sums // (2 if self.widened else 4)

    @property
    def tile_tokens(self) -> int:
        """Query tokens of one work item."""
        return max(1, _TILE_ROWS // self.group)

    def cost(self) -> Cost:
        width = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        return Cost(
            0,
            4 * width + 4 * self.num_heads * self.head_dim + 2 * self.num_kv_heads * self.head_dim * self.element_bytes,
            8 * width,
        )

    def why(self) -> str:
        return (
            f"{self.group} query heads share each key and value load; a decoding sequence writes its own token's KV in its unit, "
            f"prompts do it in a phase before; cache {self.kv_dtype}, {'products by tiles, ' if self.tiles else ''}"
            f"softmax streamed over {4 * self.lanes} keys"
        )

    def context(self) -> dict[str, object]:
        vectors = self.padded_d // self.lanes
        keys = 4 * self.lanes
        # bytes are followed by their scale and by the start value of their products
        bytes_of = {"f32": (4, 0), "bf16": (2 if self.bf16_dot else 4, 0), "int8": (1, 8)}
        width, extra = bytes_of[self.kv_dtype]
        return {
            "vectors": 4,
            "part": PART,
            "partial_bytes": -(-4 * self.group * (self.padded_d + 2) // 64) * 64,
            "mr": self.mr,
            "key_vectors": {m: 4 if 4 * m <= self.sums else 2 for m in range(1, self.mr + 1)},
            "keys": keys,
            "value_vectors": {m: max(v for v in range(1, self.sums // m + 1) if vectors % v == 0) for m in range(1, self.mr + 1)},
            "padded_d": self.padded_d,
            "key_bytes": self.key_bytes,
            "head_bytes": self.head_bytes,
            "q_bytes": (4 * self.key_steps if self.kv_dtype == "int8" else width * self.head_dim) + extra,
            "p_bytes": width * keys + extra,
            "key_steps": self.key_steps,
            "packed": self.packed,
            "value_steps": BLOCK_SIZE // self.packed,
            "tile_rows": self.tile_tokens * self.group,
            # whole blocks of rows of one height, the last of which may have some that nobody wants
            "all_rows": f"(ROWS + {_TILE - 1})" if self.tiles else "ROWS",
            "key_words": math.gcd(self.key_steps, _TILE),
            "value_tiles": max(v for v in range(1, 5) if vectors % v == 0),
            "scale": c_float(self.softmax_scale),
            "eps": c_float(self.eps),
            "value_dim": self.value_dim,
            "apart": False,
            "softcap": "",
            "sinks": "",
            "slopes": "",
        }
