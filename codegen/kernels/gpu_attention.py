"""What the attention kernels for GPUs share: heads, cache geometry, reference."""

from __future__ import annotations

from dataclasses import dataclass

from ferrum.codegen.kernels.base import Cost, c_float
from ferrum.codegen.kernels.gpu_base import GpuKernel, row_stride
from ferrum.codegen.kernels.paged_attention import BLOCK_SIZE, PagedAttention


@dataclass(frozen=True)
class GpuAttention(GpuKernel):
    """``q [T, num_heads * head_dim]`` (rotated) over the paged cache ``-> act [T, num_heads * head_dim]``.

    ``window`` 0 attends to everything before. ``out`` is the format of the result.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    window: int
    softmax_scale: float
    kv_dtype: str
    out: str
    block_bytes: int

    reference = staticmethod(PagedAttention.reference)

    @property
    def group(self) -> int:
        return self.num_heads // self.num_kv_heads

    @property
    def element_bytes(self) -> int:
        return 2 if self.kv_dtype == "bf16" else 4

    @property
    def head_bytes(self) -> int:
        """Keys and values of one KV head in one block."""
        return 2 * BLOCK_SIZE * self.head_dim * self.element_bytes

    def cost(self) -> Cost:
        width = self.num_heads * self.head_dim
        return Cost(0, width * (self.element_bytes + (2 if self.out == "bf16" else 4)), 0)

    def context(self) -> dict[str, object]:
        return {
            "group": self.group,
            "block_size": BLOCK_SIZE,
            "head_bytes": self.head_bytes,
            "key_bytes": self.head_bytes // 2,
            "q_stride": row_stride(self.kv_dtype, self.num_heads * self.head_dim),
            "stride": row_stride(self.out, self.num_heads * self.head_dim),
            "scale": c_float(self.softmax_scale),
            # the exponentials are powers of two: the scale carries log2(e)
            "scale_log2": c_float(self.softmax_scale * 1.4426950408889634),
        }
