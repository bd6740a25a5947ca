"""Hypothesis strategies for graphs: any printable shape of graph, not necessarily a sound one."""

from __future__ import annotations

from hypothesis import strategies as st

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
PARAMS = st.builds(
    Param,
    VALUES,
    st.lists(NAMES, max_size=3).map(tuple),
    st.one_of(st.none(), st.lists(FLOATS, max_size=4).map(tuple)),
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
