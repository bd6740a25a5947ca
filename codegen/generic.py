"""What computes whatever no pattern has a kernel for; the kernels read values wherever their elements lie."""

from __future__ import annotations

from collections.abc import Mapping

from ferrum.codegen.kernels import attend, pool, recur, reduce, rope, softmax
from ferrum.codegen.kernels.arrays import conv, cumsum, gather, matmul, order, scatter, take
from ferrum.codegen.kernels.grouped_linear import choose as grouped_linear
from ferrum.codegen.kernels.map import choose as maps
from ferrum.codegen.kernels.paged_attention import choose as paged_attention
from ferrum.codegen.moves import MOVES
from ferrum.codegen.walk import Choose, apart, everywhere

_EVERYWHERE: Mapping[str, Choose] = {
    "attend": attend.choose,
    "conv": conv.choose,
    "cumsum": cumsum.choose,
    "gather": gather.choose,
    "map": maps.elements,
    "matmul": matmul.choose,
    "paged_recur": recur.choose,
    "pool": pool.choose,
    "rope": rope.choose,
    "scatter": scatter.choose,
    "scatter_add": scatter.choose,
    "softmax": softmax.choose,
    "sort": order.choose,
    "take": take.choose,
    "topk": order.choose,
    **dict.fromkeys(reduce.REDUCTIONS, reduce.choose),
    **MOVES,
}
# op -> device -> what adds the calls of a node
GENERIC: Mapping[str, Mapping[str, Choose]] = {
    **{op: everywhere(choose) for op, choose in _EVERYWHERE.items()},
    "grouped_linear": apart(grouped_linear.on_cpu, grouped_linear.on_gpu),
    "paged_attend": apart(paged_attention.of_values, paged_attention.of_values_on_gpu),
}
