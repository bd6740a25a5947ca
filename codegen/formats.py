"""Formats of activations between kernels: what a producer writes and a matrix product reads."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ferrum.codegen.layouts import Format

# Values of an activation that share a scale, where the width allows it.
_SCALE_GROUP = 128
# Products of a 4-bit weight and a byte whose sum surely fits 16 bits, as whole scales want it.
WHOLE_SUM = 32


@dataclass(frozen=True)
class ActFormat:
    """Rows of activations. ``kind``: f32, bf16, or q8: signed bytes, a float32 scale for each ``group`` of values and an
    int32 bias for each ``sums`` of them.

    The bias is ``-zero * sum(q)``: it starts the integer sum of products with unsigned weights, whose stored ``zero`` means
    0. ``asymmetric`` adds ``-sum(q)`` for weights with zero points of their own.
    """

    kind: str
    group: int = 0
    sums: int = 0
    zero: int = 0
    asymmetric: bool = False

    @property
    def name(self) -> str:
        return f"q8-g{self.group}-s{self.sums}-z{self.zero}{'a' if self.asymmetric else ''}" if self.kind == "q8" else self.kind

    def padded_k(self, k: int) -> int:
        step = self.group or (2 if self.kind == "bf16" else 1)
        return -(-k // step) * step

    def groups(self, k: int) -> int:
        return self.padded_k(k) // self.group if self.group else 0

    def num_sums(self, k: int) -> int:
        return self.padded_k(k) // self.sums if self.sums else 0

    def row_bytes(self, k: int) -> int:
        """Bytes of one row of ``k`` values, a multiple of 4."""
        size = self.padded_k(k) * {"f32": 4, "bf16": 2, "q8": 1}[self.kind]
        size += 4 * self.groups(k) + 4 * self.num_sums(k) * (2 if self.asymmetric else 1)
        return -(-size // 4) * 4


def parse_act(name: str) -> ActFormat:
    match = re.fullmatch(r"q8-g(\d+)-s(\d+)-z(\d+)(a?)", name)
    if match:
        return ActFormat("q8", int(match[1]), int(match[2]), int(match[3]), bool(match[4]))
    assert name in ("f32", "bf16"), name
    return ActFormat(name)


def act_for(weight: Format, k: int, bf16_dot: bool) -> ActFormat:
    """The activation format of rows of ``k`` values that a weight format is multiplied with.

    Beside weights of whole scales a scale serves 128 values where the width allows it, whatever their group: bytes lose
    little by that, and sums stay integers for longer.

    Without a dot product of bfloat16, floats stay wide; but rows of an odd ``k`` end in half a pair, and bfloat16 rows are
    padded for that.
    """
    if weight.group:
        wide = weight.group
        while weight.whole_scales and wide < _SCALE_GROUP and -(-k // weight.group) * weight.group % (2 * wide) == 0:
            wide *= 2
        return ActFormat("q8", wide, WHOLE_SUM if weight.whole_scales else weight.group, weight.zero, weight.kind == "int4a")
    return ActFormat(weight.kind if bf16_dot or k % 2 else "f32")
