"""Hypothesis strategies for graphs: any printable shape of graph, not necessarily a sound one."""

from __future__ import annotations

from hypothesis import strategies as st

from ferrum.graphs import dims
from ferrum.graphs.expressions.expression import FUNCTIONS, Cat, Dequant, Map, Permute, Reshape, Rows, Stack, Tensor
from ferrum.graphs.expressions.schemes import SCHEMES
from ferrum.graphs.expressions.sources import Constant, External
from ferrum.graphs.ir import DTYPES, STATE_KINDS, Graph, Node, Param, Region, State, Value
from ferrum.graphs.ops import OPS

NAMES = st.one_of(
    st.sampled_from(["x", "a.b.weight", "q+k", "graph", "input", "true", "inf", "nan", "_", "return", "-1", "1e5", "é"]),
    st.text(max_size=8),
)
FLOATS = st.floats(allow_nan=False)
INTS = st.integers(-(2**63), 2**63 - 1)
ATTRS = st.one_of(
    st.booleans(),
    INTS,
    FLOATS,
    st.text(max_size=8),
    st.lists(INTS, max_size=4).map(tuple),
    st.lists(FLOATS, max_size=4).map(tuple),
    st.lists(st.text(max_size=4), max_size=4).map(tuple),
)
SYMBOLS = st.sampled_from(["batch", "seq", "tokens", "frames", "max"])


def combined(parts: st.SearchStrategy[dims.Dim]) -> st.SearchStrategy[dims.Dim]:
    """Expressions of small expressions."""
    return st.one_of(
        st.builds(dims.add, parts, parts),
        st.builds(dims.subtract, parts, parts),
        st.builds(dims.multiply, st.integers(-3, 5), parts),
        st.builds(dims.multiply, SYMBOLS, parts),
        st.builds(dims.floor_divide, parts, st.integers(1, 7)),
        st.builds(dims.ceil_divide, parts, st.integers(1, 7)),
        st.builds(dims.largest, parts, parts),
        st.builds(dims.smallest, parts, parts, parts),
    )


DIM_EXPRESSIONS: st.SearchStrategy[dims.Dim] = st.recursive(st.one_of(st.integers(-5, 70), SYMBOLS), combined, max_leaves=5)
DIMS = st.one_of(st.integers(-1, 70), SYMBOLS, NAMES, DIM_EXPRESSIONS)
VALUES = st.builds(Value, NAMES, st.one_of(st.sampled_from(DTYPES), NAMES), st.lists(DIMS, max_size=4).map(tuple))
STATES = st.builds(
    State,
    NAMES,
    st.one_of(st.sampled_from(STATE_KINDS), NAMES),
    st.one_of(st.sampled_from(DTYPES), NAMES),
    st.lists(DIMS, max_size=3).map(tuple),
    st.integers(0, 99),
)
SIZES = st.integers(-1, 70)
AXES = st.lists(SIZES, max_size=4).map(tuple)
SCHEME = st.one_of(*(st.builds(scheme, SIZES) for scheme in SCHEMES.values()))
EXPRESSIONS = st.recursive(
    st.builds(Tensor, NAMES, AXES, st.one_of(st.sampled_from(["f32", "i32"]), NAMES)),
    lambda inner: st.one_of(
        st.builds(Rows, inner, SIZES, SIZES, SIZES, SIZES),
        st.builds(Cat, st.lists(inner, max_size=3).map(tuple), SIZES),
        st.builds(Stack, st.lists(inner, max_size=3).map(tuple)),
        st.builds(Reshape, inner, AXES),
        st.builds(Permute, inner, AXES),
        st.builds(Map, inner, st.one_of(st.sampled_from(sorted(FUNCTIONS)), NAMES), FLOATS),
        st.builds(Dequant, SCHEME, st.lists(inner, max_size=3).map(tuple)),
    ),
    max_leaves=6,
)
PARAMS = st.builds(
    Param,
    VALUES,
    st.one_of(
        EXPRESSIONS,
        st.lists(FLOATS, max_size=4).map(Constant),
        st.builds(External, NAMES),
    ),
    st.one_of(st.none(), st.integers(-1, 3)),
    NAMES,
    NAMES,
)


def nodes(regions: st.SearchStrategy[tuple[Region, ...]]) -> st.SearchStrategy[Node]:
    return st.builds(
        Node,
        st.one_of(st.sampled_from(sorted(OPS)), NAMES),
        st.lists(NAMES, max_size=4).map(tuple),
        st.lists(VALUES, min_size=1, max_size=3).map(tuple),
        st.dictionaries(st.one_of(NAMES, st.sampled_from(["axis", "value", "scale", "eps", "order"])), ATTRS, max_size=4),
        st.text(max_size=12),
        regions,
    )


def regions(inner: st.SearchStrategy[Node]) -> st.SearchStrategy[tuple[Region, ...]]:
    values, names = st.lists(VALUES, max_size=2).map(tuple), st.lists(NAMES, max_size=2).map(tuple)
    region = st.builds(Region, values, st.lists(inner, max_size=2).map(tuple), names)
    return st.lists(region, max_size=2).map(tuple)


PLAIN_NODES = nodes(st.just(()))
NODES = st.one_of(PLAIN_NODES, nodes(regions(st.one_of(PLAIN_NODES, nodes(regions(PLAIN_NODES))))))
GRAPHS = st.builds(
    Graph,
    NAMES,
    st.lists(VALUES, max_size=3).map(tuple),
    st.lists(PARAMS, max_size=3).map(tuple),
    st.lists(NODES, max_size=4).map(tuple),
    st.lists(NAMES, max_size=2).map(tuple),
    st.lists(STATES, max_size=2).map(tuple),
)
