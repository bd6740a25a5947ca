"""Attention of sequences that are whole in a step: queries, keys and values are rows of it, nothing is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ferrum.codegen.kernels.arrays import ItemKernel, Operand, Operands
from ferrum.codegen.kernels.base import c_float
from ferrum.codegen.kernels.cases import Case, counts
from ferrum.codegen.kernels.gpu import ONE, WARP, Geometry
from ferrum.codegen.kernels.trials import draw, rows_of
from ferrum.codegen.walk import Walk, number
from ferrum.graphs.ir import Node
from ferrum.graphs.numpy_attention import Rules, ragged
from ferrum.pack.launches import Rows, Term

KEYS = 64  # of a block, whose scores are computed side by side
_WARPS = 4
_LENGTHS = (1, 5, 70)  # of a trial's sequences


@dataclass(frozen=True)
class Attend(ItemKernel):
    """``q [T, heads, width], k [T, kv heads, width], v [T, kv heads, value width] -> [T, heads, value width]``, each token with
    those of its sequence: the ones before it if ``causal``, and with a ``window`` only those less than it away.

    Blocks of keys are counted from where a tile of queries begins to see, and tiles from the first token of a sequence: no bit
    depends on what else is in the step. The softmax is the streaming one (Milakov & Gimelshein, 2018). On GPUs a
    warp has a token and a head, and goes over its keys one by one.
    """

    stem: ClassVar[str] = "attend"
    elements: ClassVar[bool] = True
    tile_tokens: ClassVar[int] = 16
    q: Operand
    k: Operand
    v: Operand
    out: Operand
    causal: bool
    window: int
    softmax_scale: float
    softcap: float

    @property
    def flops(self) -> int:
        return 8 * self.out.size

    @property
    def args(self) -> tuple[str, ...]:
        return (*super().args, "input:num_seqs", "input:query_start")

    def geometry(self, rows: Rows) -> Geometry:
        return Geometry(((Term(rows, 1),), (Term("one", -(-self.q.dims[0] // _WARPS)),), ONE), (WARP * _WARPS, 1, 1))

    def reference(self, *read: NDArray[Any]) -> NDArray[Any]:
        starts, (q, k, v) = np.cumsum((0, *_LENGTHS)), read
        rules = Rules(self.softmax_scale, self.causal, self.window, self.softcap)
        spans = zip(starts, starts[1:], strict=False)
        return np.concatenate([ragged(q[a:b], 0, k[a:b], v[a:b], rules, None, False) for a, b in spans])

    def case(self, random: np.random.Generator, rows: int = 0, **_: Any) -> Case:
        starts, lying = np.cumsum((0, *_LENGTHS)).astype(np.int32), [operand.lies() for operand in (self.q, self.k, self.v)]
        tokens = int(starts[-1])
        arrays = draw(random, lying, tokens) | {"input:query_start": starts}
        found = self.reference(*(lies.seen(arrays[lies.arg], tokens).astype(np.float64) for lies in lying))
        return rows_of(arrays, found, counts(tokens, len(_LENGTHS)))

    def context(self) -> dict[str, object]:
        (heads, width), (kv_heads, values) = self.q.dims, self.v.dims
        return super().context() | {
            "warps": _WARPS,
            "heads": heads,
            "group": heads // kv_heads,
            "width": width,
            "values": values,
            "keys": KEYS,
            "tile_tokens": self.tile_tokens,
            "scale": c_float(self.softmax_scale),
            "cap": c_float(self.softcap) if self.softcap else "",
        }

    def why(self) -> str:
        how = "tokens before each" if self.causal else "all tokens"
        near = f" within {self.window}" if self.window else ""
        return f"generic: {how} of a whole sequence{near}; a tile of queries and a head are an item"


def choose(walk: Walk, node: Node) -> None:
    found = Operands(walk, node)
    q, k, v = found.read
    scale, softcap = (float(number(node, key)) for key in ("scale", "softcap"))
    found.add(Attend(q, k, v, found.result(), bool(node.attrs["causal"]), int(number(node, "window")), scale, softcap))
