"""Numbers of four or eight bits that are bytes, small floats or places in a table, with scales.

=========  ===============================================================================================================
scheme     parts; a ``size`` of 0 is all of K
=========  ===============================================================================================================
int8       signed bytes ``[.., N, K]``, scales ``[.., n, K / size]`` where n is N, 1 or ``N / size``, zero points like them
e4m3       8-bit floats ``[.., N, K]`` and such scales; so e5m2
fp4        bytes ``[.., K / 2]`` of two e2m1 numbers, the first one low, scales ``[.., K / size]`` of numbers twice as large
table4     bytes ``[n / 2]`` of two places, the first one high, in a table ``[16]``, scales ``[n / size]``: flat values ``[n]``
table8     bytes ``[n]``, places in a table ``[256]``
=========  ===============================================================================================================

The last two: bitsandbytes (``functional.py``, ``QuantState``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ferrum.graphs.expressions.expression import Blocked, Components, Expr, Map, Pick, Type, Unpack, check
from ferrum.graphs.expressions.spread import block_of, repeated

_FLOATS = ("f16", "f32")
SCALED = {"int8": "i8", "e4m3": "f8e4m3", "e5m2": "f8e5m2"}  # dtypes of codes
CODEBOOKS = {"table4": 4, "table8": 8}  # bits of a place


@dataclass(frozen=True, slots=True)
class Scaled:
    size: int
    name: str

    def type_of(self, parts: Sequence[Type]) -> Type:
        check(2 <= len(parts) <= 2 + (self.name == "int8"), f"{self.name} of {len(parts)} parts")
        codes, scales, *zeros = parts
        known = codes.dtype == SCALED[self.name] and scales.dtype in _FLOATS and all(zero.dtype == "i8" for zero in zeros)
        found = ", ".join(part.dtype for part in parts)
        check(known, f"{self.name} is made of {SCALED[self.name]} and float scales, not {found}")
        fits = len(codes.shape) >= 2 and self.size >= 0
        check(fits, f"{self.name} of shape {list(codes.shape)} in blocks of {self.size}")
        *outer, n, k = codes.shape
        groups, rows = -(-k // (self.size or k)), {n, 1, *([-(-n // self.size)] if self.size else [])}
        for part in (scales, *zeros):
            fits = any(part.shape == (*outer, count, groups) for count in rows)
            check(fits, f"{self.name} scales of shape {list(part.shape)} beside {list(codes.shape)} in blocks of {self.size}")
        block, axis, kind = self._block(k), len(outer) + 1, "int"
        if self.name != "int8":
            kind = self.name if self.name == "e4m3" else "float"
            block = 0 if groups == 1 else block
        return Type(codes.shape, "f32", Blocked(self.name, block, axis, 8, bool(zeros), scales.dtype, codes=kind))

    def components(self, parts: Sequence[Expr]) -> Components:
        codes = parts[0] if self.name == "int8" else Map(parts[0], self.name)
        *_, n, k = codes.type.shape
        axis, size = len(codes.type.shape) - 1, self.size or k
        whole = self.name != "int8" and size >= k

        def spread(part: Expr) -> Expr:
            count = part.type.shape[axis - 1]
            rows = repeated(part, axis - 1, 1 if count == n else n if count == 1 else self.size, n)
            return rows if whole else repeated(rows, axis, size // self._block(k), k // self._block(k))

        return Components(codes, *map(spread, parts[1:]))

    def _block(self, k: int) -> int:
        return block_of(self.size or k, k)


@dataclass(frozen=True, slots=True)
class Fp4:
    """Twice e2m1's values are whole numbers."""

    size: int
    name: str = "fp4"

    def type_of(self, parts: Sequence[Type]) -> Type:
        check(len(parts) == 2, f"fp4 has bytes and scales, not {len(parts)} parts")
        codes, scales = parts
        check(codes.dtype == "u8" and scales.dtype in _FLOATS, f"fp4 is made of u8 and floats, not {codes.dtype}, {scales.dtype}")
        fits = len(codes.shape) >= 1 and self.size >= 1 and codes.shape[-1] * 2 % self.size == 0
        check(fits, f"fp4 bytes of shape {list(codes.shape)} are not whole blocks of {self.size}")
        shape = (*codes.shape[:-1], codes.shape[-1] * 2)
        wanted = (*shape[:-1], shape[-1] // self.size)
        check(scales.shape == wanted, f"fp4 scales of shape {list(scales.shape)}, not {list(wanted)}")
        return Type(shape, "f32", Blocked("fp4", self.size, len(shape) - 1, 5, False, scales.dtype))

    def components(self, parts: Sequence[Expr]) -> Components:
        codes, scales = parts
        return Components(Map(Unpack(codes, len(codes.type.shape) - 1, 4), "e2m1"), scales)


@dataclass(frozen=True, slots=True)
class Codebook:
    size: int
    name: str

    def type_of(self, parts: Sequence[Type]) -> Type:
        bits = CODEBOOKS[self.name]
        check(len(parts) == 3, f"{self.name} has bytes, scales and a table, not {len(parts)} parts")
        codes, scales, table = parts
        known = codes.dtype == "u8" and {scales.dtype, table.dtype} <= {*_FLOATS}
        check(known, f"{self.name} is made of u8, floats and floats, not {', '.join(part.dtype for part in parts)}")
        fits = len(codes.shape) == 1 and codes.shape[0] >= 1 and self.size >= 1
        check(fits, f"{self.name} of shape {list(codes.shape)} in blocks of {self.size}")
        n = codes.shape[0] * 8 // bits
        wanted = ((-(-n // self.size),), (1 << bits,))
        found = f"{list(scales.shape)} scales and a table of {list(table.shape)}"
        check((scales.shape, table.shape) == wanted, f"{self.name} of {n} values has {found}")
        return Type((n,), "f32", Blocked(self.name, block_of(self.size, n), 0, bits, False, scales.dtype, codes="float"))

    def components(self, parts: Sequence[Expr]) -> Components:
        codes, scales, table = parts
        bits = CODEBOOKS[self.name]
        places = Unpack(codes, 0, bits, (1, 0) if bits == 4 else ())
        n = places.type.shape[0]
        block = block_of(self.size, n)
        return Components(Pick(table, places, 0), repeated(scales, 0, self.size // block, n // block))
