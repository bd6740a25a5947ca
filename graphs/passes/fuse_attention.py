"""Scaled dot product attention → ``attend`` on [batch, seq, heads, head_dim], causal or not, with a window and shared kv heads.

What is added to scores, or chosen instead of them, is recognized by its values (``ferrum.graphs.tables``): masks, windows, biases
that grow with the distance (ALiBi). Attention written out as matmul, softmax, matmul becomes ``attend`` as well. Copies of kv
heads disappear, a factor on the queries moves into the scale.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ferrum.graphs import tables
from ferrum.graphs.expressions.sources import Constant
from ferrum.graphs.ir import Graph, Param, Shape, Value
from ferrum.graphs.passes import short_conv
from ferrum.graphs.passes.canonicalize import FORM
from ferrum.graphs.rewrite import Function, Match, P, Pat, Rules, Scope, rewrite
from ferrum.graphs.tables import Sees

SWAP = (0, 2, 1, 3)
TURN = (0, 1, 3, 2)
CAUSAL, ALL = Sees(), Sees(causal=False)


def meaning(s: Scope, table: str) -> Sees | None:
    """Of what is added to scores."""
    key = ("scores", table)
    if key not in s.memo:
        s.memo[key] = tables.score_table(table, s.nodes, s.params, s.types) if table in s.tables else None
    return s.memo[key]  # type: ignore[return-value]


def emit(s: Scope, q: str, k: str, v: str, scale: float, found: Sees, softcap: float = 0.0) -> str:
    """Heads before places, as torch has them."""
    rows = (s.emit("permute", name, order=SWAP) for name in (q, k, v))
    attended = general(s, *rows, scale=scale, found=found, softcap=softcap)
    return s.emit("permute", attended, order=SWAP)


def general(s: Scope, *names: str, scale: float, found: Sees, softcap: float = 0.0, sinks: tuple[str, ...] = ()) -> str:
    """An ``attend`` on [batch, seq, heads, width]."""
    slopes, heads = found.slopes, s.shape(names[0])[2]
    extra, operands = list(sinks), ("sinks",) * len(sinks)
    if slopes:
        assert isinstance(heads, int)
        values = slopes * heads if len(slopes) == 1 else slopes
        extra.append(s.add_param(Param(Value("attend.slopes", "f32", (heads,)), Constant(values))))
        operands = (*operands, "slopes")
    return s.emit(
        "attend", *names, *extra, causal=found.causal, window=found.window, scale=scale, softcap=softcap, operands=operands
    )


def is_causal(s: Scope, m: Match) -> str | None:
    return emit(s, m["q"], m["k"], m["v"], s.number(m["root"], "scale"), CAUSAL)


def masked(s: Scope, m: Match) -> str | None:
    found = meaning(s, m["mask"])
    return None if found is None else emit(s, m["q"], m["k"], m["v"], s.number(m["root"], "scale"), found)


def biased(s: Scope, m: Match) -> str | None:
    """An ``attend`` whose bias is a table: a mask that was handed on as numbers."""
    node = s.nodes[m["root"]]
    operands = node.attrs["operands"]
    if operands not in (("bias",), ("sinks", "bias")) or node.attrs["window"]:
        return None
    *names, bias = node.inputs
    if node.attrs["causal"]:
        return None
    found = meaning(s, bias)
    if found is None:
        return None
    scale, softcap = (s.number(m["root"], key) for key in ("scale", "softcap"))
    return general(s, *names[:3], scale=scale, found=found, softcap=softcap, sinks=tuple(names[3:]))


def numbers_of_keys(s: Scope, bias: str) -> tuple[str, str] | None:
    """``bias`` [batch, heads, seq, keys] as numbers of keys [batch, heads, 1, keys] that are the same for each query, and a table
    that is added to them ("": none)."""
    node = s.node(bias)
    if node is None or bias in s.tables:
        return None
    if node.op == "expand" and s.shape(node.inputs[0])[-2:-1] == (1,) and len(s.shape(node.inputs[0])) == 4:
        return node.inputs[0], ""
    if node.op == "repeat" and node.attrs["axis"] == 1:  # as keys are: shared by as many heads
        return numbers_of_keys(s, node.inputs[0])
    split = table_and_rest(s, bias) if node.op in ("add", "where") else None
    found = None if split is None else numbers_of_keys(s, split[1])
    if split is None or found is None:
        return None
    return found[0], s.emit("add", found[1], split[0]) if found[1] else split[0]


def key_biased(s: Scope, m: Match) -> str | None:
    """An ``attend`` whose bias has a number for each key: a column more of queries, which have 1 / scale there, and of keys."""
    node = s.nodes[m["root"]]
    if node.attrs["operands"] != ("bias",) or node.attrs["causal"] or node.attrs["window"] or node.attrs["softcap"]:
        return None
    q, k, v, bias = node.inputs
    found = numbers_of_keys(s, bias)
    meant = meaning(s, found[1]) if found is not None and found[1] else None
    if found is None or meant is None or s.shape(found[0])[:2] != (s.shape(k)[0], s.shape(k)[2]):
        return None
    scale = s.number(m["root"], "scale")
    one = s.emit("full", shape=(*s.shape(q)[:3], 1), dtype="f32", value=1.0 / scale)
    wide = [wider(s, rows, column) for rows, column in ((q, one), (k, s.emit("permute", found[0], order=(0, 3, 1, 2))))]
    return general(s, *wide, v, scale=scale, found=meant)


def wider(s: Scope, rows: str, column: str) -> str:
    """``rows`` and ``column`` side by side, and zeros up to what vectors of any cache's numbers take."""
    *lead, width = s.shape(rows)
    assert isinstance(width, int)
    rest = -(width + 1) % short_conv.EVEN
    zeros = [s.emit("full", shape=(*lead, rest), dtype="f32", value=0.0)] if rest else []
    return s.emit("cat", rows, column, *zeros, axis=3)


# attention that is written out


@dataclass(frozen=True)
class Scores:
    """scale * (q @ k), softly capped, the tables that are added to it, and those of 0 and 1 that it is multiplied by."""

    q: str
    k: str  # [.., width, keys]
    scale: float
    added: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    softcap: float = 0.0


def scores_of(s: Scope, name: str, lead: Shape) -> Scores | None:
    """What the scores ``name`` are made of; ``lead``: their batch and heads. None: of something else."""
    node = s.node(name)
    if node is None:
        return None
    shape = s.shape(name)
    if node.op == "matmul":
        return Scores(node.inputs[0], node.inputs[1], 1.0) if shape[:-2] == lead else None
    if node.op == "reshape":  # batch and heads become one axis, or two again
        inner = s.shape(node.inputs[0])
        fits = sorted((len(shape), len(inner))) == [3, 4] and shape[-2:] == inner[-2:]
        return scores_of(s, node.inputs[0], lead) if fits else None
    if node.op == "mul_scalar":
        below = s.node(node.inputs[0], "tanh")
        if below is not None:
            return capped(scores_of(s, below.inputs[0], lead), s.number(name))
        return scaled(s, scores_of(s, node.inputs[0], lead), s.number(name))
    if node.op == "maximum":  # of the least number: nothing changes
        others = [one for one in node.inputs if not low(s, one)]
        return scores_of(s, others[0], lead) if len(others) == 1 else None
    if node.op in ("add", "where"):
        return with_table(s, name, lead)
    if node.op == "mul":
        table, scores = sorted(node.inputs, key=lambda one: one not in s.tables)
        found = scores_of(s, scores, lead) if table in s.tables else None
        return None if found is None or found.added else replace(found, kept=(*found.kept, table))
    return None


def capped(found: Scores | None, cap: float) -> Scores | None:
    """cap * tanh(scores), of which a cap is divided out."""
    if found is None or found.added or found.kept or found.softcap or cap <= 0:
        return None
    return replace(found, scale=found.scale * cap, softcap=cap)


def scaled(s: Scope, found: Scores | None, factor: float) -> Scores | None:
    if found is None or found.softcap:
        return None
    added = tuple(s.emit("mul_scalar", t, value=factor) for t in found.added)
    return replace(found, scale=found.scale * factor, added=added)


def low(s: Scope, name: str) -> bool:
    """Whether ``name`` is one number, so small that its weight is none."""
    param = s.params.get(name)
    if param is not None and param.data is not None and param.data.size == 1:
        return float(param.data.reshape(())) <= tables.MASKED
    return s.node(name, "full") is not None and s.number(name) <= tables.MASKED


def table_and_rest(s: Scope, name: str) -> tuple[str, str] | None:
    """A value plus a table, or a table's choice between it and a number, as the table that is added and the value."""
    node = s.nodes[name]
    if node.op == "add":
        table, rest = sorted(node.inputs, key=lambda one: one not in s.tables)
        return (table, rest) if table in s.tables else None
    condition, yes, no = node.inputs
    fill, rest = (no, yes) if no in s.tables else (yes, no)
    if condition not in s.tables or not low(s, fill):
        return None
    zero = s.emit("full", shape=(), dtype="f32", value=0.0)
    return s.emit("where", condition, *((zero, fill) if fill == no else (fill, zero))), rest


def with_table(s: Scope, name: str, lead: Shape) -> Scores | None:
    split = table_and_rest(s, name)
    found = scores_of(s, split[1], lead) if split is not None else None
    if split is None or split[0] not in s.tables or found is None:
        return None
    table, shape = split[0], s.shape(split[0])
    if len(shape) == 3 and len(s.shape(name)) == 3 and shape[0] != 1:  # batch and heads are one axis
        table = s.emit("reshape", table, shape=(*lead, *shape[1:]))
    return replace(found, added=(*found.added, table))


def written_out(s: Scope, m: Match) -> str | None:
    """softmax(q kᵀ * scale, with tables) v; without tables each token sees all."""
    soft = s.shape(m["soft"])
    if s.attr(m["soft"], "axis") != len(soft) - 1 or len(soft) != 4 or len(s.shape(m["v"])) != 4:
        return None
    if (soft[0], *soft[2:]) != ("batch", "seq", "seq"):  # what a token's own parts see of each other, say
        return None
    found = scores_of(s, m["scores"], soft[:2])
    if found is None or len(s.shape(found.k)) != 4:
        return None
    key = s.emit("permute", found.k, order=TURN)
    if s.shape(key)[:3] != s.shape(m["v"])[:3]:
        return None
    if not found.added:
        return None if found.kept else emit(s, found.q, key, m["v"], found.scale, ALL, found.softcap)
    table = found.added[0]
    for other in found.added[1:]:
        table = s.emit("add", table, other)
    meant = meaning(s, table)
    if meant is None or any(meaning(s, without(s, table, kept)) != meant for kept in found.kept):
        return None
    return emit(s, found.q, key, m["v"], found.scale, meant, found.softcap)


def without(s: Scope, table: str, kept: str) -> str:
    """``table`` that also forbids all where ``kept`` is not 1: what was forbidden there before does not change."""
    zero, one, least = (s.emit("full", shape=(), dtype="f32", value=value) for value in (0.0, 1.0, tables.FORBIDDEN))
    return s.emit("add", table, s.emit("where", s.emit("eq", kept, one), zero, least))


def joined_heads(s: Scope, m: Match) -> str | None:
    """A product of matrices whose batch and heads were made one axis is one of four axes."""
    x, y, flat = s.shape(m["x"]), s.shape(m["y"]), s.shape(m["root"])
    if not len(x) == len(y) == 4 or x[:2] != y[:2] or len(flat) != 3:
        return None
    if s.shape(m["a"])[1:] != x[2:] or s.shape(m["b"])[1:] != y[2:]:
        return None
    return s.emit("reshape", s.emit("matmul", m["x"], m["y"]), shape=flat)


def softmax_of_joined(s: Scope, m: Match) -> str | None:
    """Along the last axis, which stays."""
    x, flat = s.shape(m["x"]), s.shape(m["root"])
    if len(x) != 4 or len(flat) != 3 or x[2:] != flat[1:] or s.attr(m["root"], "axis") != 2:
        return None
    return s.emit("reshape", s.emit("softmax", m["x"], axis=3), shape=flat)


def turned_joined(s: Scope, m: Match) -> str | None:
    x, order = s.shape(m["x"]), s.order(m["root"])
    if len(x) != 4 or order != (0, 2, 1) or s.shape(m["flat"])[1:] != x[2:]:
        return None
    return s.emit("reshape", s.emit("permute", m["x"], order=TURN), shape=s.shape(m["root"]))


def query_factor(s: Scope, m: Match) -> str:
    scale = s.number(m["root"], "scale") * s.number(m["f"])
    return s.copy(s.nodes[m["root"]], m["x"], m["k"], m["v"], scale=scale)


def key_factor(s: Scope, m: Match) -> str:
    scale = s.number(m["root"], "scale") * s.number(m["f"])
    return s.copy(s.nodes[m["root"]], m["q"], m["x"], m["v"], scale=scale)


def turned_factor(operand: str, rest: tuple[str, str]) -> Function:
    """A factor below a permute of queries or keys, which stays."""

    def function(s: Scope, m: Match) -> str:
        scale = s.number(m["root"], "scale") * s.number(m["f"])
        names = {operand: s.emit("permute", m["x"], order=s.order(m["p"])), **{key: m[key] for key in rest}}
        return s.copy(s.nodes[m["root"]], names["q"], names["k"], names["v"], scale=scale)

    return function


def shared_heads(s: Scope, m: Match) -> str | None:
    a, b = s.nodes[m["a"]].attrs, s.nodes[m["b"]].attrs
    if dict(a) != dict(b) or a["axis"] != 2:
        return None
    return s.copy(s.nodes[m["root"]], m["q"], m["k"], m["v"])


RULES: Rules = (
    (P("permute", P("reshape", "x", bind="flat")), turned_joined),
    (P("softmax", P("reshape", "x")), softmax_of_joined),
    (P("matmul", P("reshape", "x", bind="a"), P("reshape", "y", bind="b")), joined_heads),
    (P("matmul", P("softmax", "scores", bind="soft"), "v"), written_out),
    (Pat("attend"), biased),
    (Pat("attend"), key_biased),
    (P("sdpa", "q", "k", "v", is_causal=True), is_causal),
    (P("sdpa", "q", "k", "v", "mask"), masked),
    (P("attend", P("mul_scalar", "x", bind="f"), "k", "v"), query_factor),
    (P("attend", "q", P("mul_scalar", "x", bind="f"), "v"), key_factor),
    (P("attend", P("permute", P("mul_scalar", "x", bind="f"), bind="p"), "k", "v"), turned_factor("q", ("k", "v"))),
    (P("attend", "q", P("permute", P("mul_scalar", "x", bind="f"), bind="p"), "v"), turned_factor("k", ("q", "v"))),
    (P("attend", "q", P("repeat", "k", bind="a"), P("repeat", "v", bind="b")), shared_heads),
)


def run(graph: Graph) -> Graph:
    return rewrite(graph, (*RULES, *short_conv.RULES, *FORM))
