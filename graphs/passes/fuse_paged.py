"""write, write, attend → ``paged_attention``: what the kernels of CPUs and GPUs compute in one.

A machine stage: columns of one linear, q/k norms, rotation, the writes and the attention become one op with the attributes
that the kernels know; where queries, keys and values come about in another way, or attention has other options, the writes and
the attention alone become ``paged_attend``. Both name their states, which stay declared and have no versions any more: they are
the device's own. What no kernel computes is reported at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ferrum.graphs.findings import Finding, UnsupportedOps
from ferrum.graphs.ir import Attr, Graph, Node
from ferrum.graphs.passes.merge_linear import chain
from ferrum.graphs.passes.page_attention import NORM_THEN_ROPE, ONE_LINEAR, NotPaged, causal_alone, faults_of, scope_of
from ferrum.graphs.programs import program_of
from ferrum.graphs.rewrite import Scope, live
from ferrum.pack.schema import ENCODE

PLAIN: Mapping[str, Attr] = {"causal": True, "softcap": 0.0, "operands": ()}
OP, APART, RECUR = "paged_attention", "paged_attend", "paged_recur"


@dataclass(frozen=True)
class Heads:
    """One attention as the kernels see it: the merged columns, the small parameters and the attributes."""

    qkv: str
    params: tuple[str, ...]
    attrs: dict[str, Any]


def columns(s: Scope, flats: tuple[str, str, str], widths: tuple[int, int, int]) -> str:
    """The value whose columns are query, key and value in this order."""
    slices = [s.node(name, "slice") for name in flats]
    found = [node for node in slices if node is not None]
    if len(found) != 3 or len({node.inputs[0] for node in found}) != 1:
        raise NotPaged("attention whose query, key and value are not linears of one input", ONE_LINEAR)
    start, source = 0, found[0].inputs[0]
    last = len(s.shape(source)) - 1
    for node, width in zip(found, widths, strict=True):
        if (node.attrs["axis"], node.attrs["start"], node.attrs["end"]) != (last, start, start + width):
            raise NotPaged("attention whose query, key and value are not consecutive columns", ONE_LINEAR)
        start += width
    if s.shape(source)[-1] != start:
        raise NotPaged("attention on a part of a linear's columns", ONE_LINEAR)
    return source


def rows_of(s: Scope, name: str) -> str:
    """What was written into the state that attention reads, or the value itself where nothing is paged yet."""
    node = s.node(name, "write")
    if node is None and name in s.types and s.types[name].dtype != "f32":
        raise NotPaged("attention to a state that was written elsewhere", "keys and values of the same tokens")
    return name if node is None else node.inputs[1]


def describe(s: Scope, node: Node) -> Heads:
    """What ``node`` (an ``attend``) becomes, apart from its layer. Raises NotPaged with the reason."""
    if any(node.attrs[key] != value for key, value in PLAIN.items()):
        raise NotPaged("attention with soft caps, sinks or slopes", "causal attention with or without a window")
    names = (node.inputs[0], rows_of(s, node.inputs[1]), rows_of(s, node.inputs[2]))
    q_shape, k_shape, v_shape = map(s.shape, names)
    num_heads, head_dim, num_kv_heads = (int(d) for d in (*q_shape[-2:], k_shape[-2]))
    if v_shape != k_shape:
        raise NotPaged("attention whose values have another width than its keys", "one head_dim")
    (q, q_flat), (k, k_flat), (v, v_flat) = (chain(s, name) for name in names)
    spelled = [step.op for step in q]
    if spelled not in (["rope", "rms_norm", "reshape"], ["rope", "reshape"]) or [step.op for step in k] != spelled:
        raise NotPaged("attention with another order of norm and rope, or without rope", NORM_THEN_ROPE)
    if [step.op for step in v] != ["reshape"]:
        raise NotPaged("attention whose values are not plain columns", NORM_THEN_ROPE)
    qkv = columns(s, (q_flat, k_flat, v_flat), (num_heads * head_dim, num_kv_heads * head_dim, num_kv_heads * head_dim))
    freq, rotation = rotation_of(s, q[0], k[0])
    normed = len(q) == 3
    if normed and q[1].attrs["eps"] != k[1].attrs["eps"]:
        raise NotPaged("attention with different eps on query and key", "one eps for both")
    attrs: dict[str, Attr] = {
        "num_heads": num_heads,
        "num_kv_heads": num_kv_heads,
        "head_dim": head_dim,
        "scale": node.attrs["scale"],
        "window": node.attrs["window"],
        **rotation,
        "qk_norm": normed,
        "eps": q[1].attrs["eps"] if normed else 0.0,
    }
    params = (freq, *((q[1].inputs[1], k[1].inputs[1]) if normed else ()))
    if any(name not in s.params for name in params):
        raise NotPaged("attention with a norm's weight or frequencies that are computed", "parameters as they are stored")
    return Heads(qkv, params, attrs)


def rotation_of(s: Scope, q: Node, k: Node) -> tuple[str, dict[str, Attr]]:
    """(frequencies, attributes) of the one rope that turns queries and keys by the places of their tokens."""
    if q.inputs[1:] != k.inputs[1:] or dict(q.attrs) != dict(k.attrs):
        raise NotPaged("attention with different ropes on query and key", "one rope for both")
    places = s.node(q.inputs[1], "iota") is not None or q.inputs[1] == "positions"
    if not places or q.attrs["rows"] or q.attrs["seq_axis"] != len(q.output.shape) - 3:
        raise NotPaged("attention with a rope by several rows of positions", "one position for each token")
    return q.inputs[2], {"rope_scale": q.attrs["rope_scale"], "rope_dim": q.attrs["rope_dim"]}


def joined(users: Mapping[str, tuple[Node, ...]], node: Node) -> Node:
    """The reshape that puts the heads of ``node`` side by side."""
    found = users.get(node.output.name, ())
    shape = node.output.shape
    if len(found) != 1 or found[0].op != "reshape" or found[0].output.shape != (shape[0], int(shape[1]) * int(shape[2])):
        raise NotPaged("attention whose heads are not joined", "view as [batch, seq, heads * head_dim]")
    return found[0]


def run(graph: Graph) -> Graph:
    """The graph that kernels are selected for. Raises ``UnsupportedOps`` with all attention that no kernel computes."""
    if program_of(graph) == ENCODE:  # nothing is kept
        return graph
    s = scope_of(graph)
    findings: list[Finding] = []
    fused: dict[str, tuple[Node, Heads | None]] = {}  # by the name of the joined heads, or of the attention that stays apart
    users = graph.users()
    for node in graph.nodes:
        if node.op != "attend":
            continue
        try:
            heads, whole = describe(s, node), joined(users, node)
        except NotPaged:
            findings += faults_of(s, node, apart)
            fused[node.output.name] = (node, None)
        else:
            fused[whole.output.name] = (node, heads)
    if findings:
        raise UnsupportedOps(findings, f"graph {graph.name}")
    return rebuilt(s, graph, fused) if fused else graph


def apart(s: Scope, node: Node) -> None:
    """Raises NotPaged when ``node`` (an ``attend``) is no attention of tokens to those before them in their sequences."""
    causal_alone(node)
    for name in node.inputs[1:3]:
        rows_of(s, name)
        if s.node(name, "write") is None:
            raise NotPaged("attention to no state of its own", "keys and values of the same tokens")


def rebuilt(s: Scope, graph: Graph, fused: Mapping[str, tuple[Node, Heads | None]]) -> Graph:
    """``graph`` with the attention made by one op each; what only led to it is dead."""
    out = Scope(Graph(graph.name, graph.inputs, graph.params, (), ()), ())
    for state in graph.states:
        out.add_state(state)
    names: dict[str, str] = {}
    layer = 0
    for node in graph.nodes:
        if node.output.name not in fused:
            attrs = node.attrs if node.op != RECUR else {**node.attrs, "layer": layer}
            layer += node.op == RECUR
            out.keep(replace(node, inputs=tuple(names.get(name, name) for name in node.inputs), attrs=attrs))
            continue
        out.root, heads = fused[node.output.name]
        states = tuple(version.inputs[0] for name in out.root.inputs[1:3] if (version := s.node(name, "write")) is not None)
        kept: dict[str, Any] = {"layer": layer, "states": states}
        layer += 1
        if heads is not None:
            kept |= heads.attrs
            names[node.output.name] = out.emit_as(OP, OP, names.get(heads.qkv, heads.qkv), *heads.params, **kept)
            continue
        kept |= {key: node.attrs[key] for key in ("scale", "window", "softcap", "operands")}
        inputs = (node.inputs[0], *(rows_of(s, name) for name in node.inputs[1:3]), *node.inputs[3:])
        names[node.output.name] = out.emit_as(APART, APART, *(names.get(name, name) for name in inputs), **kept)
    written = {name for attend, _ in fused.values() for name in attend.inputs[1:3]}
    outputs = tuple(names.get(name, name) for name in graph.outputs if name not in written)
    nodes, used = live(out.nodes.values(), outputs)
    params = tuple(p for p in graph.params if p.name in used)
    return Graph(graph.name, graph.inputs, params, tuple(nodes), outputs, graph.states)


def form_findings(graph: Graph) -> list[Finding]:
    """What a finished graph of steps lacks as a whole: a cache."""
    if program_of(graph) == ENCODE:
        return []
    cached = any(node.op in (OP, APART, RECUR) for node in graph.nodes)
    return [] if cached else [Finding("a model without causal attention", "", "", "a decoder")]
