"""Whole numbers of two to eight bits, side by side in 32-bit words, with scales and zero points.

=========  ==============================================================================================================
scheme     values, words and zero points; b is bits, G ``K / size``
=========  ==============================================================================================================
gptqB      values ``[K, N]``, words ``[K b / 32, N]`` along K, zero points ``[G, N b / 32]`` along N, each one less than it is
gptqBv2    the same with zero points as they are
awq4       values ``[K, N]``, words ``[K, N / 8]`` along N with columns 0 2 4 6 1 3 5 7 from the lowest, zero points like them
awq4v      values ``[N, K]``, words ``[N, K / 8]`` and zero points ``[N, G / 8]`` along K
packedB    values ``[N, K]``, words ``[N, K b / 32]`` along K, zero points ``[N b / 32, G]`` along N
=========  ==============================================================================================================

Parts: the words, the scales, which are shaped as the values with K made G, the zero points if the middle is none, and, where
neighbours share nothing, the group of each K. A ``size`` of 0 is all of K. Sources: AutoGPTQ and GPTQModel
(``QuantLinear.pack``), AutoAWQ (``WQLinear_GEMM`` and ``WQLinear_GEMV``), compressed-tensors (``pack_to_int32``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ferrum.graphs.expressions.expression import Blocked, Components, Expr, Ints, Pick, Rows, Type, Unpack, check
from ferrum.graphs.expressions.spread import block_of, repeated

_WORD = 32
_AWQ = (0, 4, 1, 5, 2, 6, 3, 7)  # where in a word the columns are


@dataclass(frozen=True, slots=True)
class Lie:
    """How words lie: the axis of K, those that codes and zero points are packed along, places in a word, and what stored zero
    points lack."""

    bits: int
    axis: int
    codes: int
    zeros: int
    places: Ints = ()
    plus: int = 0


WORDS: dict[str, Lie] = {
    **{f"gptq{bits}": Lie(bits, axis=0, codes=0, zeros=1, plus=1) for bits in (2, 3, 4, 8)},
    **{f"gptq{bits}v2": Lie(bits, axis=0, codes=0, zeros=1) for bits in (2, 3, 4, 8)},
    "awq4": Lie(4, axis=0, codes=1, zeros=1, places=_AWQ),
    "awq4v": Lie(4, axis=1, codes=1, zeros=1),
    **{f"packed{bits}": Lie(bits, axis=1, codes=1, zeros=0) for bits in range(2, 9)},
}


@dataclass(frozen=True, slots=True)
class Words:
    size: int
    name: str

    def type_of(self, parts: Sequence[Type]) -> Type:
        lie = WORDS[self.name]
        check(2 <= len(parts) <= 4, f"{self.name} has words, scales, zero points and groups, not {len(parts)} parts")
        words, scales = parts[:2]
        zeros = parts[2] if len(parts) > 2 and len(parts[2].shape) == 2 else None
        index = parts[-1] if len(parts[-1].shape) == 1 else None
        check(len(parts) == 2 + bool(zeros) + bool(index), f"{self.name}: zero points [.., ..], then the group of each K [K]")
        dtypes = [part.dtype for part in parts]
        known = scales.dtype in ("f16", "f32") and all(part.dtype == "i32" for part in (words, zeros, index) if part)
        check(known, f"{self.name} is made of i32 words and float scales, not {', '.join(dtypes)}")
        check(len(words.shape) == 2 and self.size >= 0, f"{self.name} words {list(words.shape)}, in blocks of {self.size}")
        shape = self._values(words.shape)
        check(min(shape) >= 1, f"{self.name} words of shape {list(words.shape)} hold no value")
        groups = self._groups(shape)
        check(scales.shape == groups, f"{self.name} scales of shape {list(scales.shape)}, not {list(groups)}")
        if zeros:
            wanted = tuple(-(-n * lie.bits // _WORD) if axis == lie.zeros else n for axis, n in enumerate(groups))
            check(zeros.shape == wanted, f"{self.name} zero points of shape {list(zeros.shape)}, not {list(wanted)}")
        k = shape[lie.axis]
        check(index is None or index.shape == (k,), f"{self.name}: the group of each K is not [{k}]")
        block = 1 if index else block_of(self.size or k, k)
        return Type(shape, "f32", Blocked(self.name, block, lie.axis, lie.bits, zeros is not None, scales.dtype))

    def components(self, parts: Sequence[Expr]) -> Components:
        lie, (words, scales) = WORDS[self.name], parts[:2]
        zeros = parts[2] if len(parts) > 2 and len(parts[2].type.shape) == 2 else None
        index = parts[-1] if len(parts[-1].type.shape) == 1 else None
        shape = self._values(words.type.shape)
        k, size = shape[lie.axis], self.size or shape[lie.axis]
        block = block_of(size, k)

        def spread(part: Expr) -> Expr:
            return Pick(part, index, lie.axis) if index else repeated(part, lie.axis, size // block, k // block)

        codes = Unpack(words, lie.codes, lie.bits, lie.places, 0 if zeros else -(1 << lie.bits - 1))
        if zeros is None:
            return Components(codes, spread(scales))
        points = Unpack(zeros, lie.zeros, lie.bits, lie.places, lie.plus)
        whole = Rows(points, lie.zeros, 0, self._groups(shape)[lie.zeros])
        return Components(codes, spread(scales), spread(whole))

    def _values(self, words: Ints) -> Ints:
        lie = WORDS[self.name]
        return tuple(n * _WORD // lie.bits if axis == lie.codes else n for axis, n in enumerate(words))

    def _groups(self, shape: Ints) -> Ints:
        axis = WORDS[self.name].axis
        return tuple(-(-n // (self.size or n)) if at == axis else n for at, n in enumerate(shape))
