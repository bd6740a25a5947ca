"""Hypothesis strategies for graphs: any printable shape of graph, not necessarily a sound one."""

from __future__ import annotations

from hypothesis import strategies as st

from ferrum.graphs.expressions.expression import FUNCTIONS, Cat, Dequant, Map, Permute, Reshape, Rows, Stack, Tensor
from ferrum.graphs.expressions.schemes import SCHEMES
from ferrum.graphs.expressions.sources import Constant, External
from ferrum.graphs.ir import DTYPES, SYMBOLIC_DIMS, Graph, Node, Param, Value
from ferrum.graphs.ops import OPS

NAMES = st.one_of(
    st.sampled_from(["x", "a.b.weight", "q+k", "graph", "input", "true", "inf", "nan", "_", "return", "-1", "1e5", "é"]),
    st.text(max_size=8),
)
FLOATS = st.floats(allow_nan=False)
INTS = st.integers(-(2**63), 2**63)
ATTRS = st.one_of(
    st.booleans(),
    INTS,
    FLOATS,
    st.text(max_size=8),
    st.lists(INTS, max_size=4).map(tuple),
    st.lists(FLOATS, max_size=4).map(tuple),
    st.lists(st.text(max_size=4), max_size=4).map(tuple),
)
DIMS = st.one_of(st.integers(-1, 70), st.sampled_from(SYMBOLIC_DIMS), NAMES)
VALUES = st.builds(Value, NAMES, st.one_of(st.sampled_from(DTYPES), NAMES), st.lists(DIMS, max_size=4).map(tuple))
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
NODES = st.builds(
    Node,
    st.one_of(st.sampled_from(sorted(OPS)), NAMES),
    st.lists(NAMES, max_size=4).map(tuple),
    VALUES,
    st.dictionaries(st.one_of(NAMES, st.sampled_from(["axis", "value", "scale", "eps", "order"])), ATTRS, max_size=4),
    st.text(max_size=12),
)
GRAPHS = st.builds(
    Graph,
    NAMES,
    st.lists(VALUES, max_size=3).map(tuple),
    st.lists(PARAMS, max_size=3).map(tuple),
    st.lists(NODES, max_size=4).map(tuple),
    st.lists(NAMES, max_size=2).map(tuple),
)
