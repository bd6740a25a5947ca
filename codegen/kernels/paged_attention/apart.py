"""Attention on CPUs over queries, keys and values that were made elsewhere: whatever came before it, and with every option."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ferrum.codegen.kernels.base import Cost, c_float
from ferrum.codegen.kernels.paged_attention.cpu import CpuAttention
from ferrum.codegen.kernels.trials import Lies


@dataclass(frozen=True)
class Heads:
    """Where heads lie in a value, counted in elements: from row to row, the first one, from head to head."""

    value: int
    row: int
    offset: int
    head: int

    @property
    def name(self) -> str:
        return f"value:{self.value} {self.row}+{self.offset}*{self.head}"

    @property
    def slot(self) -> str:
        """The launch's slot."""
        return "in" if self.value == 0 else f"other[{self.value - 1}]"

    def lies(self, count: int, width: int) -> Lies:
        """``count`` of them in a trial."""
        return Lies(f"value:{self.value}", "f32", self.row, self.offset, (count, width), (self.head, 1))


@dataclass(frozen=True)
class CpuAttend(CpuAttention):
    """``q [T, num_heads, head_dim], k [T, num_kv_heads, head_dim], v [T, num_kv_heads, value_width]`` to
    ``[T, num_heads, value_width]``.

    ``softcap`` c: scores become c * tanh(score / c). ``operands``: a number that each head has besides: ``sinks`` take a share
    of its sums and give nothing, of ``slopes`` each place between a key and its query takes one from the score.
    """

    elements: ClassVar[bool] = True
    q: Heads
    k: Heads
    v: Heads
    value_width: int
    softcap: float
    operands: str

    @property
    def value_dim(self) -> int:
        return self.value_width

    @property
    def args(self) -> tuple[str, ...]:
        values = dict.fromkeys(f"value:{i}" for i in sorted({self.q.value, self.k.value, self.v.value}))
        weights = (f"weight:{i}" for i in range(len(self.operands.split())))
        return ("count", *values, *weights, "state", "result")

    def cost(self) -> Cost:
        keys = self.num_kv_heads * (self.head_dim + self.value_dim)
        width = self.num_heads * (self.head_dim + self.value_dim) + keys
        return Cost(0, 4 * width + keys * self.element_bytes, 8 * width)

    def why(self) -> str:
        return f"generic: q, k and v were made elsewhere; {super().why()}"

    def context(self) -> dict[str, object]:
        softcap = c_float(self.softcap) if self.softcap else ""
        given = {name: f"weight[{i}]" for i, name in enumerate(self.operands.split())}
        return super().context() | {
            "apart": True,
            "softcap": softcap,
            "sinks": given.get("sinks", ""),
            "slopes": given.get("slopes", ""),
        }
