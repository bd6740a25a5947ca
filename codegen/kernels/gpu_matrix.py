"""What the matrix products for GPUs share: shape, epilogue, reference."""

from __future__ import annotations

from dataclasses import dataclass

from ferrum.codegen.kernels.base import Cost
from ferrum.codegen.kernels.gpu_base import GpuKernel, row_bytes, row_stride
from ferrum.codegen.kernels.linear import Linear
from ferrum.codegen.layouts import RowLayout
from ferrum.graphs.ops import GATES


@dataclass(frozen=True)
class GpuMatrix(GpuKernel):
    """``x [rows, k] -> [rows, n]``, or ``[rows, n/2]`` = act(gate) * up; then ``+ bias`` before and ``+ residual`` after it.

    Weights in fp8 are unpacked to bfloat16 like all others (W8A16), and the scales of their rows multiply the finished sums.
    bfloat16 holds every e4m3 number, so batches of every size compute with the same values, and activations lose nothing. Moving
    the bits and one product with 2^120 are four instructions for two weights on any GPU; the conversion of sm_89 and later ends
    in float16 and takes as many to bfloat16.

    ``out`` is the format of the result: f32 rows follow each other without gaps, bf16 rows are those of a product's input.
    """

    n: int
    k: int
    weight: RowLayout
    bias: bool
    residual: bool
    activation: str
    out: str

    reference = staticmethod(Linear.reference)

    @property
    def params(self) -> dict[str, int | float | str | bool]:
        return super().params | {"format": self.weight.format.name}

    @property
    def args(self) -> tuple[str, ...]:
        bias = ("weight:1",) if self.bias else ()
        residual = ("value:1",) if self.residual else ()
        return ("count", "weight:0", "value:0", *bias, *residual, "result")

    @property
    def act(self) -> str:
        """The format of x."""
        return "f32" if self.weight.format.kind == "f32" else "bf16"

    @property
    def n_out(self) -> int:
        return self.n // 2 if self.activation else self.n

    @property
    def out_bytes(self) -> int:
        return row_bytes(self.out, self.n_out)

    def cost(self) -> Cost:
        reads = row_bytes(self.act, self.k) + (4 * self.n_out if self.residual else 0)
        return Cost(self.weight.nbytes, reads + self.out_bytes, 2 * self.n * self.k)

    def context(self) -> dict[str, object]:
        return {
            "f": self.weight.format,
            "gate_function": GATES.get(self.activation, ""),
            "n_out": self.n_out,
            "x_stride": row_stride(self.act, self.k),
            "out_stride": row_stride(self.out, self.n_out),
            "subs": max(1, self.weight.chunk_k // 32),
        }
