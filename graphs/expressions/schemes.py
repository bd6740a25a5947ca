"""Quantized tensors as checkpoints store them: what their parts look like, and codes, scales and zero points as expressions.

======  =======================================================================================================
scheme  parts
======  =======================================================================================================
q8      one of bytes ``[.., K / size * (2 + size)]``: for each block along the last axis a float16 scale, then its
        signed bytes
others  of GGUF's types: ``ggml/table.py``; whole numbers in words: ``words.py``; bytes, and numbers of four or eight bits
        that are floats: ``coded.py``
======  =======================================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import get_args

from ferrum.graphs.expressions.coded import CODEBOOKS, SCALED, Codebook, Fp4, Scaled
from ferrum.graphs.expressions.expression import (
    Blocked,
    Components,
    Dequant,
    Expr,
    Field,
    Reshape,
    Rows,
    Scheme,
    Type,
    View,
    check,
)
from ferrum.graphs.expressions.ggml.table import BLOCKS, Part
from ferrum.graphs.expressions.words import WORDS, Words

_TAKEN: tuple[Part, ...] = get_args(Part)


@dataclass(frozen=True, slots=True)
class Q8:
    size: int
    name: str = "q8"

    def type_of(self, parts: Sequence[Type]) -> Type:
        check(len(parts) == 1, f"q8 has one part, not {len(parts)}")
        shape, unit = parts[0].shape, self.size + 2
        check(self.size >= 1, f"q8 in blocks of {self.size}")
        check(parts[0].dtype == "u8" and len(shape) >= 1, f"q8 is made of bytes [.., K], not {parts[0].dtype}{list(shape)}")
        check(shape[-1] % unit == 0, f"q8: {shape[-1]} bytes are not whole blocks of {unit}")
        axis = len(shape) - 1
        return Type((*shape[:-1], shape[-1] // unit * self.size), "f32", Blocked(self.name, self.size, axis, 8, False, "f16"))

    def components(self, parts: Sequence[Expr]) -> Components:
        (part,) = parts
        shape, unit = part.type.shape, self.size + 2
        outer, blocks = shape[:-1], shape[-1] // unit
        units, axis = Reshape(part, (*outer, blocks, unit)), len(shape)
        codes = View(Rows(units, axis, 2, unit), "i8", 1)
        scales = View(Rows(units, axis, 0, 2), "f16", 2)
        return Components(Reshape(codes, (*outer, blocks * self.size)), Reshape(scales, (*outer, blocks)), None)


@dataclass(frozen=True, slots=True)
class Ggml:
    """``size`` is that of a whole block, whose groups may be smaller."""

    size: int
    name: str

    def type_of(self, parts: Sequence[Type]) -> Type:
        check(len(parts) == 1, f"{self.name} has one part, not {len(parts)}")
        shape, block = parts[0].shape, BLOCKS[self.name]
        check(self.size == block.size, f"{self.name} in blocks of {self.size}, which has {block.size}")
        known = parts[0].dtype == "u8" and len(shape) >= 1
        check(known, f"{self.name} is made of bytes [.., K], not {parts[0].dtype}{list(shape)}")
        check(shape[-1] % block.nbytes == 0, f"{self.name}: {shape[-1]} bytes are not whole blocks of {block.nbytes}")
        span = block.size if block.steps else 0
        blocked = Blocked(self.name, block.group, len(shape) - 1, block.bits, False, block.stored, block.mins is not None, span)
        return Type((*shape[:-1], shape[-1] // block.nbytes * block.size), "f32", blocked)

    def components(self, parts: Sequence[Expr]) -> Components:
        (part,) = parts
        taken: dict[Part, Expr] = {name: Field(part, self.name, name) for name in _TAKEN if getattr(BLOCKS[self.name], name)}
        return Components(**taken)


SCHEMES: dict[str, Callable[[int], Scheme]] = {
    "q8": Q8,
    **{name: partial(Words, name=name) for name in WORDS},
    **{name: partial(Scaled, name=name) for name in SCALED},
    **{name: partial(Codebook, name=name) for name in CODEBOOKS},
    "fp4": Fp4,
    **{name: partial(Ggml, name=name) for name in BLOCKS if name != "q8_0"},
}


def scheme_of(name: str, size: int) -> Scheme | None:
    """The scheme of a name in a graph's text; None if there is none."""
    return SCHEMES[name](size) if name in SCHEMES else None


def dequantized(block: str, part: Expr) -> Dequant:
    """The values of bytes ``[.., K / size * bytes of a block]`` of one of GGUF's types."""
    size = BLOCKS[block].size
    return Dequant(Q8(size) if block == "q8_0" else Ggml(size, block), (part,))
