"""The product on CPUs: GEMV, small batches and prefill from one physical layout."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from ferrum.codegen.kernels.base import OPTIONAL, Cost
from ferrum.codegen.kernels.cpu import CpuKernel
from ferrum.codegen.kernels.linear import Linear
from ferrum.codegen.layouts import TiledLayout
from ferrum.codegen.layouts.activations import ActFormat
from ferrum.graphs.ops import GATES

# Rows of x between two passes over the weights: their sums stay in the first cache.
_MANY = 48
# Words of four bytes in a row of a tile register, which are K in one of activations: bytes, or pairs of bfloat16.
_TILE_WORDS = 16


@dataclass(frozen=True)
class Blocking:
    """How a product is cut: ``rows`` of x by ``tiles`` of weights in registers, ``chunk_kib`` KiB of weights in the first cache.

    The default chunk is half of the smallest first-level data cache in use. ``amx_rows``: rows from which tile registers
    multiply; 0: never.
    """

    rows: int
    tiles: int
    chunk_kib: int = 16
    amx_rows: int = 0

    def __str__(self) -> str:
        return f"{self.rows}x{self.tiles}, {self.chunk_kib} KiB"


@dataclass(frozen=True)
class CpuLinear(Linear, CpuKernel):
    """``mr`` rows of x and ``nr`` vectors of weights are held in registers at once; with more rows, weights are used in chunks
    of ``chunk_kib``. Those are all of a unit's rows, or one of its ``unit_parts``, where a unit is cut for wider vectors. From
    ``amx_rows`` rows on (0: never) up to 16 of them meet ``nr`` vectors of weights in tile registers.
    """

    stem: ClassVar[str] = "linear"
    reads_private: ClassVar[bool] = True
    weight: TiledLayout
    act: ActFormat
    mr: int
    nr: int
    chunk_kib: int = 16
    unit_parts: int = field(default=1, kw_only=True, metadata=OPTIONAL)
    amx_rows: int = field(default=0, kw_only=True, metadata=OPTIONAL)

    @property
    def lanes(self) -> int:
        """Rows of a vector, of which a tile of the layout may have several."""
        return self.weight.unit_rows // (self.nr * self.unit_parts)

    @property
    def unpacked(self) -> str:
        """What weights are unpacked to before many rows (below 8 bits) or any (beside float activations) are multiplied."""
        if not self.weight.format.group:
            return ""
        return "floats" if self.act.kind == "f32" else "bytes" if self.weight.format.bits < 8 else ""

    @property
    def _float_steps(self) -> int:
        """K steps of a row of floats: values, or pairs of bfloat16; integers are not padded any more when they are floats."""
        if self.unpacked:
            return self.k
        return self.weight.padded_k // (2 if self.weight.format.kind == "bf16" else 1)

    @property
    def steps(self) -> int:
        """K steps of a span of floats; the span only paces chunks and prefetch. In tiles it is what one holds of K."""
        return _TILE_WORDS if self.amx_rows else math.gcd(self._float_steps, _TILE_WORDS)

    @property
    def tile_words(self) -> int:
        """Words of four bytes of K in a tile: all that it holds, or fewer where a scale's group ends before."""
        return math.gcd(self.act.group // 4, _TILE_WORDS) if self.act.group else _TILE_WORDS

    @property
    def last_words(self) -> int:
        """The same of the last tile of rows of floats, where it is not full."""
        return 0 if self.act.group else self._float_steps % _TILE_WORDS

    @property
    def spans(self) -> int:
        """Pieces of K that share a scale, or ``steps`` of floats."""
        return self.weight.spans or -(-self._float_steps // self.steps)

    @property
    def chunk(self) -> int:
        """Spans of a unit in one chunk, by the bytes of weights as they are multiplied."""
        bytes_each = 4 if self.unpacked == "floats" else 1
        size = self.weight.unit_rows * (self.weight.span * bytes_each or 4 * self.steps)
        return max(1, min(self.spans, (self.chunk_kib << 10) // size))

    @property
    def thread_bytes(self) -> int:
        """Scratch for one chunk of unpacked weights."""
        size = {"": 0, "bytes": 1, "floats": 4}[self.unpacked]
        return size * self.chunk * self.weight.span * self.weight.unit_rows

    def context(self) -> dict[str, object]:
        pair = self.weight.format.kind == "bf16" and self.act.kind == "f32"
        return {
            "n_out": self.n_out,
            "lanes": self.lanes,
            "many": max(self.mr, _MANY // self.mr * self.mr),
            "gate_function": GATES.get(self.activation, ""),
            "steps": self.steps,
            "x_step": 8 if pair else 4,
            "spans": self.spans,
            "fetch_steps": self.weight.span // 8 or self.steps,
            "unpacked": self.unpacked,
            "span_bytes": self.weight.span_bytes if self.weight.span else 4 * self.weight.unit_rows * self.steps,
            "tile_words": self.tile_words,
            "last_words": self.last_words,
            "chunk": self.chunk,
        }

    def cost(self) -> Cost:
        reads = self.act.row_bytes(self.k) + (4 * self.n_out if self.residual else 0)
        return Cost(self.weight.nbytes, reads + 4 * self.n_out, 2 * self.n * self.k)

    def why(self) -> str:
        rows = f"{self.mr} rows x {self.nr * self.lanes} outputs in registers"
        if self.unit_parts > 1:
            rows += f", {self.unit_parts} times to a unit"
        chunks = "chunks of K that stay in the first cache"
        if self.amx_rows == 1:
            rows = f"up to {_TILE_WORDS} rows x {self.nr * self.lanes} outputs in tiles"
            return f"{self.weight.format.name} weights with {self.act.name} activations: {rows}, in {chunks}"
        if self.unpacked == "floats":
            return f"{self.weight.format.name} weights become float32 in {chunks}, up to {rows}: activations are not rounded"
        unpack = f", above that in {chunks}" + ("; unpacked once" if self.thread_bytes else "")
        unpack += f"; from {self.amx_rows} rows on in tiles" if self.amx_rows else ""
        return (
            f"{self.weight.format.name} weights with {self.act.name} activations: 1 row streams the weights, up to {rows}{unpack}"
        )
