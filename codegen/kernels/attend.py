"""Attention of sequences that are whole in a step: queries, keys and values are rows of it, nothing is kept. CPUs only so far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ferrum.codegen.kernels.arrays import ArrayKernel, Operand, Operands
from ferrum.codegen.kernels.base import c_float
from ferrum.codegen.walk import Walk, number
from ferrum.graphs.ir import Node

KEYS = 64  # of a block, whose scores are computed side by side


@dataclass(frozen=True)
class Attend(ArrayKernel):
    """``q [T, heads, width], k [T, kv heads, width], v [T, kv heads, value width] -> [T, heads, value width]``, each token with
    those of its sequence: the ones before it if ``causal``, and with a ``window`` only those less than it away.

    Blocks of keys are counted from where a tile of queries begins to see, and tiles from the first token of a sequence: no bit
    depends on what else is in the step. The softmax is the streaming one (Milakov & Gimelshein, 2018).
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

    def context(self) -> dict[str, object]:
        (heads, width), (kv_heads, values) = self.q.dims, self.v.dims
        return {
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
