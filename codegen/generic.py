"""What computes whatever no pattern has a kernel for, on CPUs so far; the kernels read values wherever their elements lie."""

from __future__ import annotations

from collections.abc import Mapping

from ferrum.codegen.kernels import reduce, rope, softmax
from ferrum.codegen.kernels.map import choose as maps
from ferrum.codegen.kernels.paged_attention import choose as paged_attention
from ferrum.codegen.moves import MOVES
from ferrum.codegen.walk import Choose

GENERIC: Mapping[str, Choose] = {
    "map": maps.elements,
    "paged_attend": paged_attention.of_values,
    "rope": rope.choose,
    "softmax": softmax.choose,
    **dict.fromkeys(reduce.REDUCTIONS, reduce.choose),
    **MOVES,
}
