"""Formats of activations between kernels: what a producer writes and a matrix product reads."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ferrum.codegen.layouts.formats import Format, unknown

# Widest vector that a GPU's kernel loads: rows of activations start at multiples of it.
ROW_ALIGNMENT = 8


@dataclass(frozen=True)
class ActFormat:
    """Rows of activations. ``kind``: f32, bf16, or q8 (signed bytes, a float32 scale and an int32 bias per group).

    The bias of a group is ``-zero * sum(q)``: it starts the integer sum of products with unsigned weights, whose ``zero``
    means 0. ``asymmetric`` adds ``-sum(q)`` per group for weights with zero points or least values.
    """

    kind: str
    group: int = 0
    zero: int = 0
    asymmetric: bool = False

    @property
    def name(self) -> str:
        return f"q8-g{self.group}-z{self.zero}{'a' if self.asymmetric else ''}" if self.kind == "q8" else self.kind

    def padded_k(self, k: int) -> int:
        step = self.group or (2 if self.kind == "bf16" else 1)
        return -(-k // step) * step

    def groups(self, k: int) -> int:
        return self.padded_k(k) // self.group if self.group else 0

    def row_bytes(self, k: int) -> int:
        """Bytes of one row of ``k`` values, a multiple of 4."""
        per_group = 12 if self.asymmetric else 8
        size = self.padded_k(k) * {"f32": 4, "bf16": 2, "q8": 1}[self.kind] + self.groups(k) * per_group
        return -(-size // 4) * 4

    def row_stride(self, k: int) -> int:
        """Values from one row of f32 or bf16 to the next on a GPU: bf16 rows are zero behind their end."""
        return -(-k // ROW_ALIGNMENT) * ROW_ALIGNMENT if self.kind == "bf16" else k

    def stride_bytes(self, k: int) -> int:
        """Bytes from one row to the next on a GPU."""
        return self.row_stride(k) * (2 if self.kind == "bf16" else 4)


def parse_act(name: str) -> ActFormat:
    """Raises FerrumError for what is no format's name."""
    match = re.fullmatch(r"q8-g([1-9]\d{0,5})-z(\d{1,3})(a?)", name)
    if match:
        return ActFormat("q8", int(match[1]), int(match[2]), bool(match[3]))
    if name not in ("f32", "bf16"):
        raise unknown("format of activations", name)
    return ActFormat(name)


def act_for(weight: Format, k: int, bf16_dot: bool, keep: bool = False) -> ActFormat:
    """The activation format of rows of ``k`` values that a weight format is multiplied with; ``keep``: as they are, in float32.

    Without a dot product of bfloat16, floats stay wide; but rows of an odd ``k`` end in half a pair, and bfloat16 rows are
    padded for that.
    """
    if keep:
        return ActFormat("bf16" if weight.kind == "bf16" and k % 2 else "f32")
    if weight.group:
        return ActFormat("q8", weight.rounded(k), weight.byte_zero, weight.zeros or weight.mins)
    return ActFormat(weight.kind if bf16_dot or k % 2 else "f32")
