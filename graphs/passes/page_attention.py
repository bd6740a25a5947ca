"""Stateless attention over [batch, seq] → ragged tokens over a paged KV cache.

The model knows nothing of it: every value [batch, seq, ..] becomes [tokens, ..], each attention with its rope, its q/k norms
and its reshapes becomes one ``paged_attention`` on the merged query, key and value columns, and only the rows that are
sampled reach the final norm and the LM head. Everything that cannot be paged is reported at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ferrum.graphs.findings import Finding, UnsupportedOps
from ferrum.graphs.ir import Attr, Graph, Node, Shape, Value
from ferrum.graphs.ops import OpFault
from ferrum.graphs.passes.merge_linear import chain
from ferrum.graphs.rewrite import Scope, live

INPUTS = (Value("tokens", "i32", ("tokens",)), Value("positions", "i32", ("tokens",)), Value("sample_rows", "i32", ("samples",)))
NORMS = ("rms_norm", "layer_norm")
ROWWISE = frozenset({"embedding", *NORMS, "linear", "add", "gated"})
ATTENTION = ("sdpa", "softmax", "matmul")
MOVEMENT = ("reshape", "permute", "slice", "cat", "repeat", "expand")
OPENS = ("linear", *NORMS, "embedding", "add")  # a fault before these is no cause of a fault behind them
TAIL = frozenset({"linear", *NORMS})
ONE_LINEAR = "query, key and value as three nn.Linear of one input, all or none with a bias"
NORM_THEN_ROPE = "view as [batch, seq, heads, head_dim], RMSNorm over head_dim (both or neither), then rope (both)"

NEAREST: Mapping[str, str] = {
    "sdpa": "is_causal=True, or a causal mask with or without a sliding window, built from positions",
    "attention": ONE_LINEAR,
    "softmax": "scaled_dot_product_attention",
    "matmul": "nn.Linear",
    **dict.fromkeys(("silu", "gelu", "gelu_tanh"), "act(gate) * up"),
    "mul": "silu(gate) * up, or RMSNorm with a weight",
    "add": "x + linear(..)",
    "rope": "rope inside of attention",
}


class NotPaged(Exception):
    def __init__(self, what: str, nearest: str) -> None:
        super().__init__(what)
        self.what = what
        self.nearest = nearest


@dataclass(frozen=True)
class Heads:
    """One attention as the paged op sees it: the merged columns, the small parameters and the attributes."""

    qkv: str
    params: tuple[str, ...]
    attrs: dict[str, Any]


def finding(node: Node, what: str = "", nearest: str = "") -> Finding:
    module, _, source = node.origin.rpartition(" ")
    return Finding(what or f"{node.op} outside of a known pattern", module, source, nearest or NEAREST.get(node.op, ""))


def columns(s: Scope, flats: tuple[str, str, str], widths: tuple[int, int, int]) -> str:
    """The value whose columns are query, key and value in this order."""
    slices = [s.node(name, "slice") for name in flats]
    found = [node for node in slices if node is not None]
    if len(found) != 3 or len({node.inputs[0] for node in found}) != 1:
        raise NotPaged("attention whose query, key and value are not linears of one input", ONE_LINEAR)
    start, source = 0, found[0].inputs[0]
    for node, width in zip(found, widths, strict=True):
        if (node.attrs["axis"], node.attrs["start"], node.attrs["end"]) != (2, start, start + width):
            raise NotPaged("attention whose query, key and value are not consecutive columns", ONE_LINEAR)
        start += width
    if s.shape(source)[-1] != start:
        raise NotPaged("attention on a part of a linear's columns", ONE_LINEAR)
    return source


def describe(s: Scope, node: Node, layer: int) -> Heads:
    """What ``node`` (an ``attention``) becomes. Raises NotPaged with the reason."""
    q_shape, k_shape = s.shape(node.inputs[0]), s.shape(node.inputs[1])
    if q_shape[:2] != ("batch", "seq") or k_shape[:2] != ("batch", "seq"):
        raise NotPaged("attention over other axes than [batch, seq]", "[batch, heads, seq, head_dim]")
    num_heads, head_dim, num_kv_heads = (int(d) for d in (q_shape[2], q_shape[3], k_shape[2]))
    (q, q_flat), (k, k_flat), (v, v_flat) = (chain(s, name) for name in node.inputs)
    spelled = [step.op for step in q]
    if spelled not in (["rope", "rms_norm", "reshape"], ["rope", "reshape"]) or [step.op for step in k] != spelled:
        raise NotPaged("attention with another order of norm and rope, or without rope", NORM_THEN_ROPE)
    if [step.op for step in v] != ["reshape"]:
        raise NotPaged("attention whose values are not plain columns", NORM_THEN_ROPE)
    qkv = columns(s, (q_flat, k_flat, v_flat), (num_heads * head_dim, num_kv_heads * head_dim, num_kv_heads * head_dim))
    if q[0].inputs[1] != k[0].inputs[1] or dict(q[0].attrs) != dict(k[0].attrs) or q[0].attrs["seq_axis"] != 1:
        raise NotPaged("attention with different ropes on query and key", "one rope for both")
    normed = len(q) == 3
    if normed and q[1].attrs["eps"] != k[1].attrs["eps"]:
        raise NotPaged("attention with different eps on query and key", "one eps for both")
    attrs: dict[str, Attr] = {
        "layer": layer,
        "num_heads": num_heads,
        "num_kv_heads": num_kv_heads,
        "head_dim": head_dim,
        "scale": node.attrs["scale"],
        "window": node.attrs["window"],
        "rope_scale": q[0].attrs["rope_scale"],
        "rope_dim": q[0].attrs["rope_dim"],
        "qk_norm": normed,
        "eps": q[1].attrs["eps"] if normed else 0.0,
    }
    norms = (q[1].inputs[1], k[1].inputs[1]) if normed else ()
    params = (q[0].inputs[1], *norms)
    if any(name not in s.params for name in params):
        raise NotPaged("attention with a norm's weight or frequencies that are computed", "parameters as they are stored")
    return Heads(qkv, params, attrs)


def tail_of(graph: Graph, producers: Mapping[str, Node]) -> str:
    """The first value of the final norm and LM head: its input is where the sampled rows are picked. Empty: there is none."""
    uses = graph.users()
    name, first = graph.outputs[0], ""
    while (node := producers.get(name)) is not None and node.op in TAIL and not node.attrs.get("has_residual"):
        if name != graph.outputs[0] and len(uses.get(name, ())) != 1:
            break
        first = name
        if node.op in NORMS:
            break
        name = node.inputs[0]
    return first


def paged(shape: Shape) -> Shape:
    return ("tokens", *shape[2:])


def rowwise(s: Scope, out: Scope, node: Node, names: Mapping[str, str]) -> str:
    """``node`` on [tokens, ..]."""
    if node.output.shape[:2] != ("batch", "seq"):
        raise NotPaged(f"{node.op} of shape {list(node.output.shape)}", NEAREST.get(node.op, "[batch, seq, hidden]"))
    inputs = [names.get(name, name) for name in node.inputs]
    if node.op == "reshape" and out.shape(inputs[0]) == paged(node.output.shape):
        return inputs[0]
    if node.op not in ROWWISE:
        raise NotPaged(f"{node.op} outside of a known pattern", NEAREST.get(node.op, ""))
    try:
        name = out.copy(node, *inputs)
    except OpFault as fault:
        raise NotPaged(f"{node.op} of values that differ by position: {fault}", NEAREST.get(node.op, "")) from fault
    if out.shape(name)[1:] != node.output.shape[2:]:  # the first axis is tokens, or samples behind the picked rows
        raise NotPaged(f"{node.op} of shape {list(node.output.shape)}", "[batch, seq, hidden]")
    return name


def needed(graph: Graph, s: Scope, heads: Mapping[str, Heads]) -> list[Node]:
    """The nodes that remain when each attention reads its merged columns."""
    short = [
        Node(n.op, (heads[n.output.name].qkv, *heads[n.output.name].params), n.output, n.attrs, n.origin)
        if n.output.name in heads
        else n
        for n in graph.nodes
    ]
    return live(short, graph.outputs)[0]


def run(graph: Graph) -> Graph:
    """The paged graph. Raises ``UnsupportedOps`` with everything that has no paged form."""
    findings: list[Finding] = []
    s = Scope(graph, ())
    for node in graph.nodes:
        s.process(node)
    heads: dict[str, Heads] = {}
    for node in [n for n in graph.nodes if n.op == "attention"]:
        try:
            heads[node.output.name] = describe(s, node, len(heads))
        except NotPaged as fault:
            findings.append(finding(node, fault.what, fault.nearest))
    if findings:
        raise UnsupportedOps(findings + leftovers(graph), f"graph {graph.name}")
    tail = tail_of(graph, s.nodes)
    out = Scope(Graph(graph.name, INPUTS, graph.params, (), ()), ())
    names: dict[str, str] = {}
    origins: dict[str, str] = {}  # of values that have no paged form
    for node in needed(graph, s, heads):
        op = "paged_attention" if node.output.name in heads else node.op
        out.root = Node(op, (), Value(op, "f32", ()), {}, node.origin)  # values of the paged graph are named by their op
        try:
            if node.output.name in heads:
                found = heads[node.output.name]
                names[node.output.name] = out.emit("paged_attention", names[found.qkv], *found.params, **found.attrs)
                continue
            if node.output.name == tail:
                out.root = Node("gather_rows", (), Value("gather_rows", "f32", ()), {}, node.origin)
                names[node.inputs[0]] = out.emit("gather_rows", names[node.inputs[0]], "sample_rows")
                out.root = Node(op, (), Value(op, "f32", ()), {}, node.origin)
            names[node.output.name] = rowwise(s, out, node, names)
        except NotPaged as fault:
            if node.op in ATTENTION or not any(origins.get(name) == node.origin for name in node.inputs):
                findings.append(finding(node, fault.what, fault.nearest))  # else: the chain of this source line is reported
            origins[node.output.name] = node.origin
            names[node.output.name] = out.emit("full", shape=paged(node.output.shape), dtype=node.output.dtype, value=0.0)
    if not tail:
        findings.append(Finding("a graph that does not end in a linear", "", "", "an LM head"))
    if findings:
        causes = [f for f in findings if f.what.split()[0] not in MOVEMENT]  # moved data is a consequence
        raise UnsupportedOps(causes or findings, f"graph {graph.name}")
    outputs = tuple(names[name] for name in graph.outputs)
    nodes, used = live(out.nodes.values(), outputs)
    return Graph(graph.name, INPUTS, tuple(p for p in out.params.values() if p.name in used), tuple(nodes), outputs)


def form_findings(graph: Graph) -> list[Finding]:
    """What a paged graph as a whole has that cannot be planned: layers that share no cache, or an end that gives no logits."""
    findings = []
    attention = [node for node in graph.nodes if node.op == "paged_attention"]
    if not attention:
        findings.append(Finding("a model without causal attention", "", "", "a decoder"))
    for node in attention[1:]:
        unlike = [k for k in ("num_heads", "num_kv_heads", "head_dim") if node.attrs[k] != attention[0].attrs[k]]
        if unlike:
            sizes = ", ".join(f"{k} {node.attrs[k]} beside {attention[0].attrs[k]}" for k in unlike)
            what = f"a layer of another geometry than the first: {sizes}"
            findings.append(finding(node, what, "the same heads in every layer"))
    last = next((node for node in graph.nodes if node.output.name in graph.outputs), None)
    if last is None or last.op != "linear":
        findings.append(Finding("a graph that does not end in a linear", "", "", "an LM head"))
    return findings


def leftovers(graph: Graph) -> list[Finding]:
    """Attention that no pass has recognized."""
    return [finding(n) for n in graph.nodes if n.op in ATTENTION]


def attention_findings(graph: Graph) -> list[Finding]:
    """What cannot be paged in the attention of an incomplete graph, apart from what reads its unsupported inputs."""
    s = Scope(graph, ())
    for node in graph.nodes:
        s.process(node)
    hidden = {v.name for v in graph.inputs[1:]}
    findings: list[Finding] = []
    layer = 0
    for node in graph.nodes:
        if node.op not in OPENS and any(name in hidden for name in node.inputs):
            hidden.add(node.output.name)
        elif node.op == "attention":
            try:
                describe(s, node, layer)
            except NotPaged as fault:
                findings.append(finding(node, fault.what, fault.nearest))
            layer += 1
        elif node.op in ATTENTION:
            findings.append(finding(node))
    return findings
