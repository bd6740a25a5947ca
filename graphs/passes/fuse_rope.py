"""x * cos + rotated(x) * sin → ``rope`` by positions 0, 1, 2 …; the frequencies become one small parameter.

The tables cos and sin are recognized by their values (``ferrum.graphs.tables``), so any way of computing them will do. Ropes
move before permutes.
"""

from __future__ import annotations

from ferrum.graphs import tables
from ferrum.graphs.expressions.sources import Constant
from ferrum.graphs.ir import Graph, Param, Value
from ferrum.graphs.passes.canonicalize import FORM
from ferrum.graphs.rewrite import Match, P, Rules, Scope, rewrite

Rotation = tuple[tuple[float, ...], float]


def rotation(s: Scope, cos: str, sin: str, x: str) -> tuple[int, Rotation] | None:
    """(axis of the positions, the rotation) for tables that multiply ``x``."""
    shape = s.shape(x)
    axes = [i for i, dim in enumerate(shape) if dim == "seq"]
    if len(axes) != 1 or cos not in s.tables or sin not in s.tables:
        return None
    key = ("rotation", cos, sin, shape)
    if key not in s.memo:
        s.memo[key] = tables.rotation(cos, sin, shape, axes[0], s.nodes, s.params, s.types)
    found = s.memo[key]
    return None if found is None else (axes[0], found)  # type: ignore[return-value]


def emit(s: Scope, x: str, axis: int, freq: tuple[float, ...], scale: float) -> str:
    inv_freq = s.add_param(Param(Value("rope.inv_freq", "f32", (len(freq),)), Constant(freq)))
    positions = s.emit_as("positions", "iota", shape=(s.shape(x)[axis],), dtype="i64", start=0, step=1)
    return s.emit("rope", x, positions, inv_freq, seq_axis=axis, rope_dim=2 * len(freq), rope_scale=scale, rows=())


def part(s: Scope, name: str, x: str) -> tuple[int, int] | None:
    """Which columns of ``x`` the slice ``name`` holds; ``x`` may itself be a slice of the same value."""
    last, node, outer = len(s.shape(x)) - 1, s.nodes[name], s.node(x, "slice")
    if node.attrs["axis"] != last:
        return None
    start, end = s.integer(name, "start"), s.integer(name, "end")
    if node.inputs[0] == x:
        return start, end
    if outer is None or outer.attrs["axis"] != last or outer.inputs[0] != node.inputs[0]:
        return None
    shift = s.integer(x, "start")
    return start - shift, end - shift


def whole(s: Scope, m: Match) -> str | None:
    x = m["x"]
    width, last = s.shape(x)[-1], len(s.shape(x)) - 1
    if not isinstance(width, int) or width % 2 or s.attr(m["cat"], "axis") != last:
        return None
    half = width // 2
    if part(s, m["low"], x) != (0, half) or part(s, m["high"], x) != (half, width):
        return None
    found = rotation(s, m["cos"], m["sin"], x)
    if found is None:
        return None
    axis, (freq, scale) = found
    return emit(s, x, axis, freq[:half], scale) if freq[:half] == freq[half:] else None


def by_halves(s: Scope, m: Match) -> str | None:
    a, b, last = m["a"], m["b"], len(s.shape(m["root"])) - 1
    low, high = s.node(a, "slice"), s.node(b, "slice")
    if low is None or high is None or low.inputs != high.inputs or s.attr(m["root"], "axis") != last:
        return None
    source = low.inputs[0]
    first, second = part(s, a, source), part(s, b, source)
    if first is None or second is None or first[1] != second[0] or s.shape(a) != s.shape(b):
        return None
    found = rotation(s, m["cos"], m["sin"], a)
    if found is None:
        return None
    x = s.emit("slice", source, axis=last, start=first[0], end=second[1])
    return emit(s, x, found[0], *found[1])


def partial(s: Scope, m: Match) -> str | None:
    """cat(rope(first columns), the other columns) is a rope of fewer columns."""
    x, last = m["x"], len(s.shape(m["x"])) - 1
    cut = s.attr(m["turned"], "end")
    turned, rest = s.nodes[m["turned"]].attrs, s.nodes[m["rest"]].attrs
    if not turned["axis"] == rest["axis"] == s.attr(m["root"], "axis") == last or s.shape(m["root"]) != s.shape(x):
        return None
    if (turned["start"], rest["start"], rest["end"]) != (0, cut, s.shape(x)[-1]):
        return None
    return s.copy(s.nodes[m["rope"]], x, m["at"], m["f"])


def before_permute(s: Scope, m: Match) -> str | None:
    order = s.order(m["p"])
    if order[-1] != len(order) - 1:
        return None
    axis = order[s.integer(m["root"], "seq_axis")]
    if len(s.shape(m["at"])) != 1:  # positions along several axes, which the permute moves
        return None
    return s.emit("permute", s.copy(s.nodes[m["root"]], m["x"], m["at"], m["f"], seq_axis=axis), order=order)


def before_other(s: Scope, m: Match) -> str:
    """rope commutes with a scale and with copies of an axis."""
    return s.copy(s.nodes[m["y"]], s.copy(s.nodes[m["root"]], m["x"], m["at"], m["f"]))


def rules() -> Rules:
    low, high = P("slice", "source", bind="low"), P("slice", "source", bind="high")
    return (
        (P("add", P("mul", "x", "cos"), P("mul", P("cat", P("neg", high), low, bind="cat"), "sin")), whole),
        (
            P(
                "cat",
                P("sub", P("mul", "a", "cos"), P("mul", "b", "sin")),
                P("add", P("mul", "b", "cos"), P("mul", "a", "sin")),
            ),
            by_halves,
        ),
        (P("cat", P("rope", P("slice", "x", bind="turned"), "at", "f", bind="rope"), P("slice", "x", bind="rest")), partial),
        (P("rope", P("permute", "x", bind="p"), "at", "f"), before_permute),
        (P("rope", P("mul_scalar", "x", bind="y"), "at", "f"), before_other),
        (P("rope", P("repeat", "x", bind="y"), "at", "f"), before_other),
    )


RULES = rules()


def run(graph: Graph) -> Graph:
    return rewrite(graph, (*RULES, *FORM))
