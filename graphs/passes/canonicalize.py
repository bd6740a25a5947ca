"""One spelling for each idea, so that later passes need one pattern for each.

Squares are ``pow_scalar 2``, division is a product with a reciprocal, kept axes are real axes, neighbouring reshapes and
permutes are one, a linear layer is ``linear`` however it was written, kv heads that are copied are ``repeat``. What is computed
of weights alone becomes part of them (``fold_weights``).
"""

from __future__ import annotations

from ferrum.graphs.ir import Graph
from ferrum.graphs.passes.fold_weights import FOLD
from ferrum.graphs.rewrite import Function, Match, P, Rules, Scope, rewrite

NEAR = 1e-6  # relative difference of 1 / n and a written reciprocal


def to(op: str, *inputs: str) -> Function:
    return lambda s, m: s.emit(op, *(m[i] for i in inputs))


# arithmetic


def div_to_mul(s: Scope, m: Match) -> str:
    return s.emit("mul", m["x"], s.emit("reciprocal", m["y"]))


def power(s: Scope, m: Match) -> str | None:
    value = s.number(m["root"])
    ops = {-1.0: "reciprocal", 0.5: "sqrt", -0.5: "rsqrt"}
    return m["x"] if value == 1.0 else s.emit(ops[value], m["x"]) if value in ops else None


def scalar_operand(op: str) -> Function:
    """A binary op with a constant of one value becomes the op's scalar form, if the constant does not widen the shape."""

    def function(s: Scope, m: Match) -> str | None:
        if s.shape(m["root"]) != s.shape(m["x"]) or s.types[m["x"]].dtype != s.types[m["root"]].dtype:
            return None
        return s.emit(op, m["x"], value=s.number(m["c"]))

    return function


def number_parameter(op: str) -> Function:
    """A binary op with a constant of the model that is one number becomes the op's scalar form."""

    def function(s: Scope, m: Match) -> str | None:
        param = s.params.get(m["c"])
        if param is None or param.data is None or param.data.size != 1 or s.shape(m["root"]) != s.shape(m["x"]):
            return None
        return s.emit(op, m["x"], value=float(param.data.reshape(())))

    return function


def neutral(value: float) -> Function:
    return lambda s, m: m["x"] if s.number(m["root"]) == value else None


def scaled_twice(s: Scope, m: Match) -> str:
    return s.emit("mul_scalar", m["x"], value=s.number(m["root"]) * s.number(m["inner"]))


def minus_one(s: Scope, m: Match) -> str | None:
    return s.emit("neg", m["x"]) if s.number(m["root"]) == -1.0 else None


def sub_scalar_constant(s: Scope, m: Match) -> str | None:
    if s.shape(m["root"]) != s.shape(m["x"]):
        return None
    return s.emit("add_scalar", m["x"], value=-s.number(m["c"]))


def mean_from_sum(s: Scope, m: Match) -> str | None:
    axis = s.integer(m["sum"], "axis")
    size = s.shape(m["x"])[axis]
    if not isinstance(size, int) or abs(s.number(m["root"]) * size - 1) > NEAR:
        return None
    return s.emit("mean", m["x"], axis=axis, keepdim=bool(s.attr(m["sum"], "keepdim")))


def counted(s: Scope, m: Match) -> str:
    """A running sum of a constant counts: (place + 1) * constant. So some models number their tokens."""
    shape, axis = s.shape(m["root"]), s.integer(m["root"], "axis")
    count = s.emit("add_scalar", s.emit("iota", shape=(shape[axis],), dtype="i64", start=0, step=1), value=1.0)
    dtype = s.types[m["root"]].dtype
    typed = count if dtype == "i64" else s.emit("cast", count, dtype=dtype)
    along = s.emit("mul_scalar", typed, value=s.number(m["c"]))
    wide = s.emit("reshape", along, shape=tuple(dim if i == axis else 1 for i, dim in enumerate(shape)))
    return s.emit("expand", wide, shape=shape)


def all_alike(s: Scope, m: Match) -> str:
    """Wherever one looks in a constant of one number, there it is."""
    return s.emit("full", shape=s.shape(m["root"]), dtype=s.types[m["root"]].dtype, value=s.number(m["c"]))


def keep_axis(s: Scope, m: Match) -> str | None:
    if s.attr(m["root"], "keepdim"):
        return None
    node = s.nodes[m["root"]]
    kept = s.emit(node.op, m["x"], axis=node.attrs["axis"], keepdim=True)
    return s.emit("reshape", kept, shape=node.output.shape)


def drop_cast(s: Scope, m: Match) -> str | None:
    return m["x"] if s.types[m["root"]].dtype == s.types[m["x"]].dtype else None


ARITHMETIC: Rules = (
    (P("div", "x", "y"), div_to_mul),
    (P("mul", "x", "x"), lambda s, m: s.emit("pow_scalar", m["x"], value=2.0)),
    (P("pow_scalar", "x"), power),
    (P("reciprocal", P("sqrt", "x")), to("rsqrt", "x")),
    (P("sqrt", P("reciprocal", "x")), to("rsqrt", "x")),
    (P("mul", "x", P("sigmoid", "x")), to("silu", "x")),
    (P("mul", "x", P("reciprocal", P("add_scalar", P("exp", P("neg", "x")), value=1.0))), to("silu", "x")),
    (P("mul", "x", P("full", bind="c")), scalar_operand("mul_scalar")),
    (P("add", "x", P("full", bind="c")), scalar_operand("add_scalar")),
    (P("sub", "x", P("full", bind="c")), sub_scalar_constant),
    (P("mul", "x", "c"), number_parameter("mul_scalar")),
    (P("add", "x", "c"), number_parameter("add_scalar")),
    (P("add_scalar", "x"), neutral(0.0)),
    (P("mul_scalar", "x"), neutral(1.0)),
    (P("mul_scalar", "x"), minus_one),
    (P("mul_scalar", P("mul_scalar", "x", bind="inner")), scaled_twice),
    (P("neg", P("neg", "x")), lambda s, m: m["x"]),
    (P("add", "x", P("neg", "y")), to("sub", "x", "y")),
    (P("sub", "x", P("neg", "y")), to("add", "x", "y")),
    (P("mul", P("neg", "x"), "y"), lambda s, m: s.emit("neg", s.emit("mul", m["x"], m["y"]))),
    (P("mul_scalar", P("sum", "x", bind="sum")), mean_from_sum),
    (P("cumsum", P("full", bind="c")), counted),
    *((P(op, P("full", bind="c"), "at"), all_alike) for op in ("take", "gather")),
    (P("mean", "x"), keep_axis),
    (P("sum", "x"), keep_axis),
    (P("cast", "x"), drop_cast),
    (P("not", P("not", "x")), lambda s, m: m["x"]),
)

# form


def same_shape(s: Scope, m: Match) -> str | None:
    return m["x"] if s.shape(m["root"]) == s.shape(m["x"]) else None


def reshape_twice(s: Scope, m: Match) -> str:
    return s.emit("reshape", m["x"], shape=s.shape(m["root"]))


def permute_identity(s: Scope, m: Match) -> str | None:
    order = s.order(m["root"])
    return m["x"] if order == tuple(range(len(order))) else None


def permute_twice(s: Scope, m: Match) -> str:
    inner, outer = s.order(m["inner"]), s.order(m["root"])
    return s.emit("permute", m["x"], order=tuple(inner[i] for i in outer))


def copied_axis(s: Scope, m: Match) -> str | None:
    """reshape(expand(reshape(x))) that copies each element of one axis is ``repeat``."""
    narrow, wide, out = (s.shape(m[k]) for k in ("narrow", "wide", "root"))
    if len(narrow) != len(wide) or len(wide) != len(out) + 1:
        return None
    for axis in range(len(out)):
        size, one, times = narrow[axis], narrow[axis + 1], wide[axis + 1]
        if one != 1 or not isinstance(size, int) or not isinstance(times, int) or times == 1:
            continue
        rest = (narrow[:axis], narrow[axis + 2 :])
        if wide == (*rest[0], size, times, *rest[1]) and out == (*rest[0], size * times, *rest[1]):
            return s.emit("repeat", s.emit("reshape", m["x"], shape=(*rest[0], size, *rest[1])), axis=axis, times=times)
    return None


def widened_axis(s: Scope, m: Match) -> str | None:
    """An expand of a single axis of length 1 that is no mask or table."""
    x, out = s.shape(m["x"]), s.shape(m["root"])
    if len(x) != len(out) or m["x"] in s.tables:
        return None
    wider = [i for i, (a, b) in enumerate(zip(x, out, strict=True)) if a != b]
    size = out[wider[0]] if len(wider) == 1 else ""
    return s.emit("repeat", m["x"], axis=wider[0], times=size) if isinstance(size, int) else None


def repeat_of_permute(s: Scope, m: Match) -> str:
    axis, order = s.integer(m["root"], "axis"), s.order(m["p"])
    inner = s.emit("repeat", m["x"], axis=order[axis], times=s.integer(m["root"], "times"))
    return s.emit("permute", inner, order=order)


def once(s: Scope, m: Match) -> str | None:
    return m["x"] if s.attr(m["root"], "times") == 1 else None


def whole_axis(s: Scope, m: Match) -> str | None:
    return m["x"] if s.shape(m["root"]) == s.shape(m["x"]) else None


def slice_twice(s: Scope, m: Match) -> str | None:
    if s.attr(m["root"], "axis") != s.attr(m["inner"], "axis"):
        return None
    shift = s.integer(m["inner"], "start")
    start, end = (s.integer(m["root"], key) + shift for key in ("start", "end"))
    return s.emit("slice", m["x"], axis=s.attr(m["root"], "axis"), start=start, end=end)


def scale_of_permute(s: Scope, m: Match) -> str:
    return s.emit("permute", s.emit("mul_scalar", m["x"], value=s.number(m["root"])), order=s.order(m["p"]))


def before_reshape(s: Scope, m: Match) -> str | None:
    """An op on single elements computes before a reduced axis comes or goes, so that patterns need not look through it."""
    node, before = s.nodes[m["root"]], s.shape(m["x"])
    if (*before, 1) != node.output.shape and before != (*node.output.shape, 1):
        return None
    return s.emit("reshape", s.copy(node, m["x"]), shape=node.output.shape)


FORM: Rules = (
    (P("reshape", "x"), same_shape),
    (P("reshape", P("reshape", "x")), reshape_twice),
    (P("expand", "x"), same_shape),
    (P("permute", "x"), permute_identity),
    (P("permute", P("permute", "x", bind="inner")), permute_twice),
    (P("reshape", P("expand", P("reshape", "x", bind="narrow"), bind="wide")), copied_axis),
    (P("reshape", P("repeat", P("reshape", "x", bind="narrow"), bind="wide")), copied_axis),
    (P("expand", "x"), widened_axis),
    (P("repeat", "x"), once),
    (P("repeat", P("permute", "x", bind="p")), repeat_of_permute),
    (P("mul_scalar", P("permute", "x", bind="p")), scale_of_permute),
    (P("slice", "x"), whole_axis),
    *(
        (P(op, P("reshape", "x")), before_reshape)
        for op in ("add_scalar", "mul_scalar", "pow_scalar", "sqrt", "rsqrt", "reciprocal")
    ),
    (P("slice", P("slice", "x", bind="inner")), slice_twice),
)

# products


def is_weight(s: Scope, name: str) -> bool:
    return name in s.params and s.params[name].weight is not None


def bias_of_linear(s: Scope, m: Match) -> str | None:
    node = s.nodes[m["l"]]
    if node.attrs["has_bias"] or node.attrs["has_residual"] or not is_weight(s, m["b"]):
        return None
    if s.shape(m["b"]) != s.shape(m["root"])[-1:] or s.uses[m["l"]] > 1:
        return None
    return s.emit("linear", *node.inputs, m["b"], has_bias=True, has_residual=False, activation="")


def bias_after_reshape(s: Scope, m: Match) -> str | None:
    if not is_weight(s, m["b"]) or s.shape(m["b"]) != s.shape(m["root"])[-1:] or s.shape(m["l"])[-1:] != s.shape(m["b"]):
        return None
    return s.emit("reshape", s.emit("add", m["l"], m["b"]), shape=s.shape(m["root"]))


def linear_of_flat(s: Scope, m: Match) -> str | None:
    """linear(reshape(x)) that only merges batch and seq computes on x itself."""
    before, after = s.shape(m["x"]), s.shape(m["flat"])
    if before[:2] != ("batch", "seq") or len(before) != 3 or before[-1:] != after[-1:] or before == after:
        return None
    node = s.nodes[m["root"]]
    inner = s.copy(node, m["x"], *node.inputs[1:])
    return s.emit("reshape", inner, shape=node.output.shape)


def embedding_scale(s: Scope, m: Match) -> str:
    scale = s.number(m["e"], "scale") * s.number(m["root"])
    return s.emit("embedding", *s.nodes[m["e"]].inputs, scale=scale)


PRODUCTS: Rules = (
    (P("linear", P("reshape", "x", bind="flat"), "w", has_residual=False), linear_of_flat),
    (P("linear", P("reshape", "x", bind="flat"), "w", "b", has_bias=True), linear_of_flat),
    (P("add", P("linear", "x", "w", bind="l"), "b"), bias_of_linear),
    (P("add", P("reshape", P("linear", "x", "w", bind="l")), "b"), bias_after_reshape),
    (P("mul_scalar", P("embedding", "t", "w", bind="e")), embedding_scale),
)

RULES: Rules = (*FOLD, *ARITHMETIC, *FORM, *PRODUCTS)


def run(graph: Graph) -> Graph:
    return rewrite(graph, RULES)
