"""What is computed of weights alone becomes part of the weights: 1 + w, -exp(w), a transposed matrix, a part of a fused one.

Rules of ``canonicalize``. A reshape stays: how a vector is broadcast says what it is for.
"""

from __future__ import annotations

from collections.abc import Callable

from ferrum.graphs.expressions.expression import Expr, cat, mapped, permute, reshape, rows
from ferrum.graphs.ir import Param, Value
from ferrum.graphs.rewrite import Function, Match, P, Pat, Rules, Scope


def weight(s: Scope, name: str) -> Expr | None:
    """The expression of a weight of floats that no later stage has decided about."""
    param = s.params.get(name)
    if param is None or param.format or param.shard is not None or param.value.dtype != "f32":
        return None
    return param.weight


def derived(s: Scope, name: str, source: Expr) -> str:
    """The parameter that ``source`` makes, called after the weight ``name``."""
    op = s.root.op if s.root else "derived"
    return s.add_param(Param(Value(f"{name}.{op}", "f32", source.type.shape), source))


def folded(build: Callable[[Scope, str, Expr], Expr]) -> Function:
    def function(s: Scope, m: Match) -> str | None:
        source = weight(s, m["w"])
        return None if source is None else derived(s, m["w"], build(s, m["root"], source))

    return function


def joined(s: Scope, m: Match) -> str | None:
    names = s.nodes[m["root"]].inputs
    sources = [source for name in names if (source := weight(s, name)) is not None]
    return derived(s, names[0], cat(sources, s.integer(m["root"], "axis"))) if len(sources) == len(names) else None


def product(s: Scope, m: Match) -> str | None:
    """x @ w is a linear layer with the matrix transposed."""
    source = weight(s, m["w"])
    if source is None or len(s.shape(m["w"])) != 2:
        return None
    turned = derived(s, m["w"], permute(source, (1, 0)))
    return s.emit("linear", m["x"], turned, has_bias=False, has_residual=False, activation="")


def moved(s: Scope, name: str) -> Expr | None:
    """A weight whose elements were only moved: seen as another shape, its axes turned."""
    node = s.node(name)
    source = weight(s, name) if node is None else moved(s, node.inputs[0]) if node.op in ("reshape", "permute") else None
    if node is None or source is None:
        return source
    if node.op == "permute":
        return permute(source, s.order(name))
    return reshape(source, tuple(int(dim) for dim in s.shape(name)))


def matrices(s: Scope, m: Match) -> str | None:
    """Matrices of groups that lie one under the other in a checkpoint are what a product by groups reads."""
    x, w, group = s.nodes[m["root"]].inputs
    source = moved(s, w) if s.node(w) is not None else None
    return None if source is None else s.copy(s.nodes[m["root"]], x, derived(s, first(s, w), source), group)


def first(s: Scope, name: str) -> str:
    """The weight from which ``name`` was moved."""
    node = s.node(name)
    return name if node is None else first(s, node.inputs[0])


FOLD: Rules = (
    (P("add_scalar", "w"), folded(lambda s, root, w: mapped(w, "add", s.number(root)))),
    (P("mul_scalar", "w"), folded(lambda s, root, w: mapped(w, "mul", s.number(root)))),
    (P("neg", "w"), folded(lambda s, root, w: mapped(w, "mul", -1.0))),
    (P("exp", "w"), folded(lambda s, root, w: mapped(w, "exp"))),
    (P("permute", "w"), folded(lambda s, root, w: permute(w, s.order(root)))),
    (P("slice", "w"), folded(lambda s, root, w: rows(w, *(s.integer(root, key) for key in ("axis", "start", "end"))))),
    (Pat("cat"), joined),
    (P("matmul", "x", "w"), product),
    (Pat("grouped_linear"), matrices),
)
