"""Stateless attention over [batch, seq] → ragged tokens whose keys and values are states.

The model knows nothing of it: every value [batch, seq, ..] becomes [tokens, ..], the keys and values of each attention are
written into two states of their own, and positions become an input. Everything that cannot be paged is reported at once.

An encoder's sequences enter whole, so nothing is kept: its attention is over the ragged rows themselves, in both directions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ferrum.graphs.dims import substitute
from ferrum.graphs.findings import Finding, UnsupportedOps
from ferrum.graphs.infer_attention import PAGED_OPERANDS
from ferrum.graphs.ir import Graph, Node, Shape, State, Value
from ferrum.graphs.op_spec import words
from ferrum.graphs.passes.merge_linear import chain
from ferrum.graphs.passes.page_rows import NotPaged, Rows, has_tokens
from ferrum.graphs.programs import program_of
from ferrum.graphs.rewrite import Scope, live
from ferrum.pack.schema import ENCODE

INPUTS = (Value("tokens", "i32", ("tokens",)), Value("positions", "i32", ("tokens",)))
NORMS = ("rms_norm", "layer_norm")
ATTENTION = ("sdpa", "softmax", "matmul")
ROLES = ("query", "key", "value")  # what the values between a linear and an attention are called
MOVEMENT = ("reshape", "permute", "slice", "cat", "repeat", "expand")
OPENS = ("linear", *NORMS, "embedding", "add")  # a fault before these is no cause of a fault behind them
ONE_LINEAR = "query, key and value as three nn.Linear of one input, all or none with a bias"
NORM_THEN_ROPE = "view as [batch, seq, heads, head_dim], RMSNorm over head_dim (both or neither), then rope (both)"

NEAREST: Mapping[str, str] = {
    "sdpa": "is_causal=True, or a causal mask with or without a sliding window, built from positions",
    "attend": ONE_LINEAR,
    "softmax": "scaled_dot_product_attention",
    "matmul": "nn.Linear",
    **dict.fromkeys(("silu", "gelu", "gelu_tanh"), "act(gate) * up"),
    "mul": "silu(gate) * up, or RMSNorm with a weight",
    "add": "x + linear(..)",
    "rope": "rope inside of attention",
}


def finding(node: Node, what: str = "", nearest: str = "") -> Finding:
    module, _, source = node.origin.rpartition(" ")
    return Finding(what or f"{node.op} outside of a known pattern", module, source, nearest or NEAREST.get(node.op, ""))


Judge = Callable[[Scope, Node], object]


def judge_of(graph: Graph) -> Judge:
    """What says whether an ``attend`` of the graph has a paged form."""
    return check_whole if program_of(graph) == ENCODE else check


def check(s: Scope, node: Node) -> None:
    """Raises NotPaged when ``node`` (an ``attend``) has no paged form."""
    check_axes(s, node)
    causal_alone(node)


def check_whole(s: Scope, node: Node) -> None:
    """Raises NotPaged when ``node`` has no form over sequences that enter whole."""
    check_axes(s, node)
    if node.attrs["operands"]:
        what = f"attention with {', '.join(words(node.attrs, 'operands'))} in a model that embeds"
        raise NotPaged(what, "attention in one direction or both, with or without a window")


def check_axes(s: Scope, node: Node) -> None:
    if any(s.shape(name)[:2] != ("batch", "seq") for name in node.inputs[:3]):
        raise NotPaged("attention over other axes than [batch, seq]", "[batch, heads, seq, head_dim]")


def causal_alone(node: Node) -> None:
    """Raises NotPaged unless each token attends to those before it, by what a head has of its own."""
    if not node.attrs["causal"] or not set(words(node.attrs, "operands")) <= set(PAGED_OPERANDS):
        raise NotPaged("attention that is not causal, or with a bias, segments or a length", "causal attention")


@dataclass
class Pager:
    """The paged graph under construction. ``roles``: what the values around attention are called; ``whole``: nothing is kept."""

    s: Scope
    out: Scope
    roles: Mapping[str, str]
    rows: Rows
    whole: bool = False
    states: list[State] = field(default_factory=list)
    versions: list[str] = field(default_factory=list)

    def named(self, node: Node, stem: str) -> None:
        """What is emitted next is called ``stem`` and comes from where ``node`` came from."""
        self.out.root = Node(stem, (), (Value(stem, "f32", ()),), {}, node.origin)

    def page(self, node: Node) -> tuple[str, ...]:
        """``node`` on rows of tokens; the names of its values."""
        if node.op in KEPT:
            return (KEPT[node.op](self, node),)
        self.named(node, self.roles.get(node.output.name, "") or node.op)
        try:
            return self.rows.page(node)
        except NotPaged as fault:
            raise NotPaged(fault.what, fault.nearest or NEAREST.get(node.op, "")) from fault

    def attend(self, node: Node) -> str:
        q, k, v, *of_heads = map(self.rows.name, node.inputs)
        if self.whole:
            self.named(node, "attend")
            return self.out.copy(node, q, k, v)
        window = node.attrs["window"]
        assert isinstance(window, int)
        written = []
        for stem, rows in (("keys", k), ("values", v)):
            kind, shape = "window" if window else "paged", self.out.shape(rows)[1:]
            state = self.keep(State(f"{stem}.{len(self.versions) // 2}", kind, "f32", shape, window))
            self.named(node, state.name)
            written.append(self.out.emit("write", state.name, rows))
        self.versions += written
        self.named(node, "attend")
        return self.out.copy(node, q, *written, *of_heads)

    def recur(self, node: Node) -> str:
        """The op keeps its state by itself: one place for a sequence, whatever its length."""
        if self.whole:
            raise NotPaged("a recurrence in a model that embeds", "attention")
        if any(self.rows.shape(name)[:2] != ("batch", "seq") for name in node.inputs):
            raise NotPaged("a recurrence over other axes than [batch, seq]", "[batch, seq, heads, width]")
        names = [self.rows.name(name) for name in node.inputs]
        shape = (*self.out.shape(names[0])[1:], self.out.shape(names[2])[-1])
        state = self.keep(State(f"recurrence.{len(self.states)}", "slot", "f32", shape, 0))
        self.named(node, node.op)
        return self.out.emit("paged_recur", *names, layer=0, states=(state.name,), delta=node.attrs["delta"])

    def keep(self, state: State) -> State:
        self.states.append(state)
        self.out.add_state(state)
        return state


KEPT: Mapping[str, Callable[[Pager, Node], str]] = {"attend": Pager.attend, "recur": Pager.recur}


def roles(s: Scope, nodes: list[Node]) -> dict[str, str]:
    """What the values around each attention are called: from the linear's columns to its inputs, and what joins its heads."""
    found: dict[str, str] = {}
    for node in nodes:
        if node.op == "attend":
            for role, name in zip(ROLES, node.inputs, strict=False):
                steps, flat = chain(s, name)
                found.update((step.output.name, role) for step in steps)
                if (columns := s.node(flat, "slice")) is not None and columns.attrs["axis"] == 2:
                    found[flat] = role
        source = s.node(node.inputs[0], "attend") if node.op == "reshape" else None
        if source is not None and node.output.shape[:2] == ("batch", "seq"):
            found[node.output.name] = "attended"
    return found


def run(graph: Graph) -> Graph:
    """The paged graph. Raises ``UnsupportedOps`` with everything that has no paged form."""
    s = scope_of(graph)
    nodes = live(graph.nodes, graph.outputs)[0]
    judge = judge_of(graph)
    findings = [f for node in nodes if node.op == "attend" for f in faults_of(s, node, judge)]
    if findings:
        raise UnsupportedOps(findings + leftovers(graph), f"graph {graph.name}")
    out = Scope(Graph(graph.name, INPUTS, graph.params, (), ()), ())
    pager = Pager(s, out, roles(s, nodes), Rows(out, s.types), program_of(graph) == ENCODE)
    causes = Causes()
    for node in nodes:
        try:
            made = pager.page(node)
        except NotPaged as fault:
            causes.add(node, fault.what, fault.nearest)
            made = tuple(out.emit("full", shape=paged(value.shape), dtype=value.dtype, value=0.0) for value in node.outputs)
        pager.rows.names.update(zip((value.name for value in node.outputs), made, strict=True))
    causes.tell(f"graph {graph.name}")
    outputs = (*(pager.rows.names[name] for name in graph.outputs), *pager.versions)
    kept, used = live(out.nodes.values(), outputs)
    params = tuple(p for p in out.params.values() if p.name in used)
    return Graph(graph.name, INPUTS, params, tuple(kept), outputs, tuple(pager.states))


def paged(shape: Shape) -> Shape:
    """A shape for what has no paged form."""
    return tuple("tokens" if has_tokens(dim) else substitute(dim, {"batch": 1}) for dim in shape if dim != "batch")


@dataclass
class Causes:
    """Findings of nodes, without those that only follow from an earlier one of the same source line."""

    findings: list[Finding] = field(default_factory=list)
    origins: dict[str, str] = field(default_factory=dict)  # of values that no finished graph holds

    def add(self, node: Node, what: str = "", nearest: str = "") -> None:
        if node.op in ATTENTION or not any(self.origins.get(name) == node.origin for name in node.inputs):
            self.findings.append(finding(node, what, nearest))  # else: the chain of this source line is reported
        self.origins.update((value.name, node.origin) for value in node.outputs)

    def tell(self, where: str) -> None:
        """Raises ``UnsupportedOps`` if there is anything to tell."""
        if self.findings:
            causes = [f for f in self.findings if f.what.split()[0] not in MOVEMENT]  # moved data is a consequence
            raise UnsupportedOps(causes or self.findings, where)


def scope_of(graph: Graph) -> Scope:
    s = Scope(graph, ())
    for node in graph.nodes:
        s.process(node)
    return s


def faults_of(s: Scope, node: Node, judge: Judge) -> list[Finding]:
    """What ``judge`` has against ``node``: nothing, or one thing."""
    try:
        judge(s, node)
    except NotPaged as fault:
        return [finding(node, fault.what, fault.nearest)]
    return []


def leftovers(graph: Graph) -> list[Finding]:
    """Attention that no pass has recognized."""
    return [finding(n) for n in graph.nodes if n.op in ATTENTION]


def attention_findings(graph: Graph, *judges: Judge) -> list[Finding]:
    """What ``judges`` have against the attention of an incomplete graph, apart from what reads its unsupported inputs."""
    s = scope_of(graph)
    hidden = {v.name for v in graph.inputs[1:]}
    findings: list[Finding] = []
    for node in graph.nodes:
        if node.op not in OPENS and any(name in hidden for name in node.inputs):
            hidden.update(value.name for value in node.outputs)
        elif node.op == "attend":
            findings += next((found for judge in judges if (found := faults_of(s, node, judge))), [])
        elif node.op in ATTENTION:
            findings.append(finding(node))
    return findings
