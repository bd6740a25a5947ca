"""A short causal convolution of each channel → ``attend``: each head picks one of a token's last ``width`` tokens by its place.

Queries and keys are lines with one 1: a key's stands at its token's place modulo a length of ``width`` or more, a head's query
has it where the token so many places before has. Such a score is so far above the others that its weight is exactly 1, and rows
of a window are what the convolution keeps between steps: paging, chunks, shared prefixes and preemption are attention's own.
"""

from __future__ import annotations

from ferrum.graphs.expressions.expression import permute, reshape
from ferrum.graphs.ir import Node
from ferrum.graphs.passes.fold_weights import derived, weight
from ferrum.graphs.rewrite import Match, P, Rules, Scope

SHARP = 1e4  # exp of its negative is 0
EVEN = 4  # a line's length is a multiple: what vectors of any cache's numbers take


def slides(s: Scope, node: Node, root: str) -> bool:
    """Whether ``root`` is as much of a convolution as there are tokens, each from itself and those before it."""
    x, w = (s.shape(name) for name in node.inputs)
    if len(w) != 3 or len(x) != 3 or (x[0], x[2]) != ("batch", "seq") or w[1] != 1 or not isinstance(w[2], int):
        return False
    form = {"stride": (1,), "dilation": (1,), "padding": (w[2] - 1,), "groups": w[0]}
    take = s.nodes[root]
    at = s.node(take.inputs[1], "iota")
    if at is None or at.output.shape != ("seq",) or (at.attrs["start"], at.attrs["step"]) != (0, 1):
        return False
    return take.attrs["axis"] == 2 and all(node.attrs[key] == value for key, value in form.items())


def line_of(s: Scope, at: str, length: int) -> str:
    """A line with a 1 at ``at`` [.., 1] modulo its length."""
    size = s.emit("full", shape=(), dtype="i64", value=float(length))
    places = s.emit("iota", shape=(length,), dtype="i64", start=0, step=1)
    return s.emit("cast", s.emit("eq", s.emit("remainder", at, size), places), dtype="f32")


def attended(s: Scope, x: str, channels: int, width: int) -> str:
    """[batch, seq, width, channels]: by head, what lies width - 1 .. 0 places before each token; 0 where nothing does."""
    length = -(-width // EVEN) * EVEN
    at = s.emit("reshape", s.emit("iota", shape=("seq",), dtype="i64", start=0, step=1), shape=("seq", 1))
    before = s.emit("iota", shape=(width,), dtype="i64", start=width - 1, step=-1)
    wanted = s.emit("sub", at, before)
    key = s.emit("reshape", line_of(s, at, length), shape=(1, "seq", 1, length))
    query = line_of(s, s.emit("reshape", wanted, shape=("seq", width, 1)), length)
    query = s.emit("reshape", query, shape=(1, "seq", width, length))
    rows = s.emit("reshape", s.emit("permute", x, order=(0, 2, 1)), shape=("batch", "seq", 1, channels))
    wide = (s.emit("expand", name, shape=("batch", *s.shape(name)[1:])) for name in (query, key))
    found = s.emit("attend", *wide, rows, causal=True, window=width, scale=SHARP, softcap=0.0, operands=())
    there = s.emit("ge", wanted, s.emit("full", shape=(), dtype="i64", value=0.0))
    there = s.emit("reshape", there, shape=(1, "seq", width, 1))
    return s.emit("where", there, found, s.emit("full", shape=(), dtype="f32", value=0.0))


def convolved(s: Scope, m: Match) -> str | None:
    node = s.nodes[m["c"]]
    if not slides(s, node, m["root"]):
        return None
    stored = s.node(m["w"], "reshape")
    name = stored.inputs[0] if stored is not None else m["w"]
    channels, _, width = (int(dim) for dim in s.shape(m["w"]))
    if (source := weight(s, name)) is None:
        return None
    by_place = derived(s, name, permute(reshape(source, (channels, width)), (1, 0)))
    taken = s.emit("mul", attended(s, m["x"], channels, width), by_place)
    rows = s.emit("permute", s.emit("sum", taken, axis=2, keepdim=False), order=(0, 2, 1))
    return s.emit("add", rows, m["bias"]) if "bias" in m else rows


RULES: Rules = (
    (P("take", P("conv", "x", "w", bind="c"), "at"), convolved),
    (P("take", P("add", P("conv", "x", "w", bind="c"), "bias"), "at"), convolved),
)
