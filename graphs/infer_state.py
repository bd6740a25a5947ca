"""Shapes of what reads and writes states, and the rule that only the newest version of a state is used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ferrum.graphs.ir import STATE_KINDS, Graph, Node, Shape, State, Value
from ferrum.graphs.op_spec import Attrs, Inputs, Typed, axis_of, integer, need, show

ELEMENTS = ("f32", "bf16", "f16")


def write(x: Inputs, _: Attrs, __: Value | None) -> Typed:
    """The next version: ``rows`` behind those that each sequence has, or, in a slot, the new array of each sequence."""
    version, rows = x
    need(version.dtype in STATE_KINDS, f"{version.name} is no version of a state")
    need(rows.dtype == "f32", f"rows are f32, not {rows.dtype}")
    need(rows.shape[1:] == version.shape and len(rows.shape) > 0, f"rows {show(rows.shape)} into {show(version.shape)}")
    need(version.dtype != "slot" or rows.shape[0] == "seqs", "a slot takes one array for each of seqs")
    return version.dtype, version.shape


def read(x: Inputs, _: Attrs, __: Value | None) -> Typed:
    """The arrays [seqs, ..] of a slot."""
    need(x[0].dtype == "slot", f"{x[0].name} is no version of a slot")
    return "f32", ("seqs", *x[0].shape)


def view(x: Inputs, a: Attrs, _: Value | None) -> Typed:
    """A part of each row of a version: values that lie in the state of their keys are a view of it."""
    need(x[0].dtype in STATE_KINDS and x[0].dtype != "slot", f"{x[0].name} is no version of a state with rows")
    axis, start, end = axis_of(a, x[0].shape), integer(a, "start"), integer(a, "end")
    size = x[0].shape[axis]
    need(isinstance(size, int) and 0 <= start < end <= size, f"view {start}:{end} is outside of an axis of {size}")
    return x[0].dtype, (*x[0].shape[:axis], end - start, *x[0].shape[axis + 1 :])


def state_faults(state: State) -> Iterator[str]:
    where = f"state {state.name}"
    if state.kind not in STATE_KINDS:
        yield f"{where}: kind {state.kind!r} is unknown"
    if state.dtype not in ELEMENTS:
        yield f"{where}: elements of {state.dtype!r}, not of {', '.join(ELEMENTS)}"
    if not all(isinstance(dim, int) and dim > 0 for dim in state.shape) or not state.shape:
        yield f"{where}: a row has fixed dims"
    if (state.kind in ("window", "fixed")) != (state.limit > 0):
        yield f"{where}: a limit of {state.limit} does not fit kind {state.kind}"


def version_faults(graph: Graph) -> Iterator[str]:
    """Reads of an old version, two writes of one, views that are written, states whose last version is no output."""
    roots = {state.name: state for state in graph.states}
    newest = {name: name for name in roots}
    owner: dict[str, tuple[str, str]] = {name: (name, name) for name in roots}  # version or view → (state, version)
    for node in (node for node in graph.nodes if node.outputs):
        yield from _uses(node, owner, newest, roots)
        if node.op in ("write", "view") and node.inputs and node.inputs[0] in owner:
            state, version = owner[node.inputs[0]]
            if node.op == "write":
                version = newest[state] = node.output.name
            owner[node.output.name] = (state, version)
    yield from _kept_faults(graph, roots)
    kept = {name for node in graph.nodes for name in _kept(node)}
    returned = [name for name in graph.outputs if name in owner]
    for state, version in newest.items():
        if version not in returned and state not in kept:
            yield f"state {state}: its last version {version!r} is not an output"
    for name in returned:
        if name not in newest.values():
            yield f"output {name!r} is not the last version of a state"


KEEPS = ("paged_attention", "paged_attend", "paged_recur")


def _kept(node: Node) -> tuple[str, ...]:
    """The states that an op reads and writes by itself, without versions."""
    names = node.attrs.get("states", ())
    return tuple(map(str, names)) if node.op in KEEPS and isinstance(names, tuple) else ()


def _kept_shapes(node: Node, shapes: Mapping[str, Shape]) -> tuple[Shape, ...]:
    """The shapes of a row of an op's states."""
    if node.op == "paged_attend":
        return tuple(shapes[name][1:] for name in node.inputs[1:3])
    if node.op == "paged_recur":
        return ((*shapes[node.inputs[0]][1:], shapes[node.inputs[2]][-1]),)
    return ((node.attrs.get("num_kv_heads"), node.attrs.get("head_dim")),) * 2  # type: ignore[return-value]


def _kept_kind(node: Node) -> str:
    return "slot" if node.op == "paged_recur" else "window" if node.attrs.get("window") else "paged"


def _kept_faults(graph: Graph, states: Mapping[str, State]) -> Iterator[str]:
    """Such states are those of one op and of nobody else, and have its heads and its window."""
    used = [name for node in graph.nodes for name in (*_kept(node), *node.inputs) if name in states]
    shapes = {name: value.shape for name, value in graph.values().items()}
    for node in (node for node in graph.nodes if node.outputs):
        where, window = f"{node.output.name} = {node.op}", node.attrs.get("window", 0)
        if not (names := _kept(node)):
            continue
        for name, shape in zip(names, _kept_shapes(node, shapes), strict=False):
            state = states.get(name)
            if state is None:
                yield f"{where}: {name!r} is no state"
            elif state.shape != shape or (state.kind, state.limit) != (_kept_kind(node), window):
                yield f"{where}: state {name} is of other heads or another window"
            elif used.count(name) > 1:
                yield f"{where}: state {name} is used elsewhere too"


def _uses(
    node: Node, owner: Mapping[str, tuple[str, str]], newest: Mapping[str, str], states: Mapping[str, State]
) -> Iterator[str]:
    where = f"{node.output.name} = {node.op}"
    for name in dict.fromkeys(n for n in node.inputs if n in owner):
        state, version = owner[name]
        if version != newest[state]:
            verb = "writes" if node.op == "write" else "reads"
            yield f"{where}: {verb} {name!r}, an old version of state {state} (the newest is {newest[state]!r})"
        elif node.op == "write" and name != version:
            yield f"{where}: writes {name!r}, a view of state {state}"
        window = node.attrs.get("window", 0) if node.op == "attend" else 0
        if node.op == "attend" and states[state].kind == "window":
            fits = node.attrs.get("causal") is True and isinstance(window, int) and 0 < window <= states[state].limit
            if not fits:
                yield f"{where}: looks further back than state {state} keeps ({states[state].limit})"
