"""Pattern rewriting: a pass is a table of (pattern, function), where a function that returns None means "no match".

``rewrite`` walks the nodes once in execution order, so a node's inputs are already in their final form when its patterns
are tried, and walks again until nothing fires. Everything that a function emits goes through the same table. Equal nodes
become one node, dead nodes and parameters disappear. A replaced node passes its name on to its replacement, so that the
dumps of two stages can be compared line by line. One walk is linear in the number of nodes. A node with several outputs is
kept as it is, as is one with a region: no pattern replaces it, and none looks into a region.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from ferrum.graphs.ir import Attr, Graph, Node, Param, Region, Shape, State, Value
from ferrum.graphs.ops import infer

COMMUTATIVE = frozenset({"add", "mul", "and", "or", "eq", "ne"})
TABLE_SOURCES = frozenset({"full", "iota"})
MAX_WALKS = 16
MAX_DEPTH = 64  # rewrites of what a rewrite emitted

Match: TypeAlias = dict[str, str]


@dataclass(frozen=True, slots=True)
class Pat:
    """A node of ``op`` whose inputs match ``inputs``: a string binds any value, the same string twice must be the same value.

    ``bind`` names the node itself in the match; ``attrs`` must be equal. Commutative ops are tried in both orders.
    ``inputs`` of None matches any inputs.
    """

    op: str
    inputs: tuple[Pat | str, ...] | None = None
    bind: str = ""
    attrs: Mapping[str, Attr] = field(default_factory=dict)


def P(op: str, *inputs: Pat | str, bind: str = "", **attrs: Attr) -> Pat:
    return Pat(op, inputs, bind, attrs)


Function: TypeAlias = Callable[["Scope", Match], "str | None"]
Rule: TypeAlias = tuple[Pat, Function]
Rules: TypeAlias = tuple[Rule, ...]


def matches(pat: Pat | str, name: str, nodes: Mapping[str, Node], env: Match) -> Iterator[Match]:
    """Every way in which ``pat`` fits the value ``name``."""
    if isinstance(pat, str):
        if env.get(pat, name) == name:
            yield {**env, pat: name}
        return
    node = nodes.get(name)
    if node is None or node.op != pat.op or any(node.attrs.get(k) != v for k, v in pat.attrs.items()):
        return
    if pat.bind:
        env = {**env, pat.bind: name}
    if pat.inputs is None:
        yield env
        return
    if len(pat.inputs) != len(node.inputs):
        return
    yield from match_all(pat.inputs, node.inputs, nodes, env)
    if node.op in COMMUTATIVE and len(set(node.inputs)) == 2:
        yield from match_all(pat.inputs, node.inputs[::-1], nodes, env)


def match_all(pats: tuple[Pat | str, ...], names: tuple[str, ...], nodes: Mapping[str, Node], env: Match) -> Iterator[Match]:
    if not pats:
        yield env
        return
    for found in matches(pats[0], names[0], nodes, env):
        yield from match_all(pats[1:], names[1:], nodes, found)


def _key_of(param: Param) -> tuple[object, ...]:
    """Equal for parameters that are the same numbers in the same shape."""
    return ("param", param.source, param.shard, param.value.shape)


class Scope:
    """The graph under construction: what a rewrite function may look at and add to."""

    def __init__(self, graph: Graph, rules: Iterable[Rule]) -> None:
        self.params = {p.name: p for p in graph.params}
        self.types: dict[str, Value] = {v.name: v for v in graph.inputs}
        self.types.update((s.name, s.value) for s in graph.states)
        self.types.update((p.name, p.value) for p in graph.params)
        self.nodes: dict[str, Node] = {}  # by the name of their first output
        self.tables: set[str] = {p.name for p in graph.params if p.data is not None}
        self.alias: dict[str, str] = {}
        self.fired = 0
        self.rules: dict[str, list[Rule]] = {}
        for rule in rules:
            self.rules.setdefault(rule[0].op, []).append(rule)
        self.uses = Counter(name for node in graph.nodes for name in node.inputs)
        self.uses.update(graph.outputs)
        self.known: dict[tuple[object, ...], str] = {_key_of(p): p.name for p in reversed(graph.params) if p.weight}
        self.numbers: Counter[str] = Counter()
        self.taken = set(self.types) | {v.name for n in graph.nodes for v in n.outputs}
        self.root: Node | None = None
        self.depth = 0
        self.fresh: dict[str, str] = {}
        self.memo: dict[tuple[object, ...], object] = {}  # for rewrite functions: costly answers about values

    def node(self, name: str, op: str = "") -> Node | None:
        """The node whose first output is ``name``, if there is one (and if it is an ``op``)."""
        node = self.nodes.get(name)
        return node if node is not None and op in ("", node.op) else None

    def shape(self, name: str) -> Shape:
        return self.types[name].shape

    def attr(self, name: str, key: str) -> Attr:
        return self.nodes[name].attrs[key]

    def number(self, name: str, key: str = "value") -> float:
        value = self.nodes[name].attrs[key]
        assert isinstance(value, int | float)
        return float(value)

    def integer(self, name: str, key: str) -> int:
        return int(self.number(name, key))

    def order(self, name: str) -> tuple[int, ...]:
        return tuple(int(i) for i in self.nodes[name].attrs["order"])  # type: ignore[union-attr]

    def fresh_name(self, stem: str) -> str:
        name = stem
        while name in self.taken:
            self.numbers[stem] += 1
            name = f"{stem}.{self.numbers[stem]}"
        self.taken.add(name)
        return name

    def add_state(self, state: State) -> None:
        """Enter a state, whose name must be free."""
        assert state.name not in self.taken
        self.taken.add(state.name)
        self.types[state.name] = state.value

    def add_param(self, param: Param) -> str:
        """Add ``param`` and return its name: a new one if the name is taken; parameters of one source and shape are one."""
        key = _key_of(param)
        if key in self.known:
            return self.known[key]
        name = self.fresh_name(param.name)
        param = replace(param, value=replace(param.value, name=name))
        self.params[name], self.types[name] = param, param.value
        if param.data is not None:
            self.tables.add(name)
        self.known[key] = name
        return name

    def emit(self, op: str, *inputs: str, shape: Shape | None = None, dtype: str = "", **attrs: Any) -> str:
        """Add a node (or find an equal one) and return its value's name. ``shape`` and ``dtype`` where inference needs them."""
        return self.add(op, inputs, shape, dtype, attrs)[0]

    def emit_as(self, stem: str, op: str, *inputs: str, shape: Shape | None = None, dtype: str = "", **attrs: Any) -> str:
        """As ``emit``, and the value is called ``stem`` or, when that is taken, stem.1, stem.2 …"""
        return self.add(op, inputs, shape, dtype, attrs, stem=stem)[0]

    def copy(self, node: Node, *inputs: str, shape: Shape | None = None, **changed: Any) -> str:
        """Add ``node``'s op with its attributes (some ``changed``) on other inputs."""
        return self.add(node.op, inputs, shape, "", {**node.attrs, **changed}, node.regions)[0]

    def add(
        self,
        op: str,
        inputs: tuple[str, ...],
        shape: Shape | None,
        dtype: str,
        attrs: dict[str, Attr],
        regions: tuple[Region, ...] = (),
        stem: str = "",
    ) -> tuple[str, ...]:
        """The names of the outputs of a node, added or found."""
        values = tuple(self.types[name] for name in inputs)
        declared = None
        if shape is not None:
            declared = Value("", dtype or (values[0].dtype if values else "f32"), shape)
        elif dtype:
            declared = Value("", dtype, values[0].shape)
        results = infer(op, values, attrs, () if declared is None else (declared,), regions)
        stem = stem or (self.root.output.name if self.root else op)
        outputs = tuple(Value(self.fresh_name(stem), *result) for result in results)
        self.fresh.update((value.name, stem) for value in outputs)
        self.depth += 1
        assert self.depth <= MAX_DEPTH, "rewrite rules do not come to an end"
        made = self.process(Node(op, inputs, outputs, attrs, self.root.origin if self.root else "", regions))
        self.depth -= 1
        return made if isinstance(made, tuple) else (made,)

    def process(self, node: Node) -> str | tuple[str, ...]:
        """Enter ``node`` under the rules; the name of what stands for its output, or the names of a node that is kept."""
        if any(name in self.alias for name in node.inputs):
            node = replace(node, inputs=tuple(self.alias.get(name, name) for name in node.inputs))
        if len(node.outputs) > 1 or node.regions:
            return self.keep(node)
        key = (node.op, node.inputs, tuple(sorted(node.attrs.items())), node.output.dtype, node.output.shape)
        name = node.output.name
        if key in self.known:
            return self.set_alias(name, self.known[key])
        outer, self.root = self.root, node
        self.nodes[name], self.types[name] = node, node.output
        for pat, function in self.rules.get(node.op, ()):
            for match in matches(pat, name, self.nodes, {}):
                fired = self.fired
                found = function(self, {**match, "root": name})
                if found is None:
                    self.fired = fired  # what it tried on the way changes nothing
                if found is not None and found != name:
                    self.root = outer
                    self.fired += 1
                    del self.nodes[name]
                    return self.set_alias(name, found)
        self.root = outer
        # what a failed function left behind is dead; the node itself must follow what it may refer to
        self.nodes[name] = self.nodes.pop(name)
        self.known[key] = name
        if node.op in TABLE_SOURCES or (node.inputs and all(i in self.tables for i in node.inputs)):
            self.tables.add(name)
        return name

    def keep(self, node: Node) -> tuple[str, ...]:
        """Enter ``node`` as it is, under no rule."""
        names = tuple(value.name for value in node.outputs)
        self.nodes[names[0]] = node
        self.types.update((value.name, value) for value in node.outputs)
        return names

    def set_alias(self, old: str, new: str) -> str:
        self.alias[old] = new
        self.uses[new] += self.uses[old]
        return new


def live(nodes: Iterable[Node], outputs: Iterable[str]) -> tuple[list[Node], set[str]]:
    """The nodes that ``outputs`` need, in order, and every name that is read."""
    needed = set(outputs)
    kept: list[Node] = []
    for node in reversed(list(nodes)):
        if any(value.name in needed for value in node.outputs):
            kept.append(node)
            needed.update(node.inputs)
    return kept[::-1], needed


def walk(graph: Graph, rules: Iterable[Rule]) -> tuple[Graph, int]:
    scope = Scope(graph, rules)
    for node in graph.nodes:
        scope.process(node)
    outputs = tuple(scope.alias.get(name, name) for name in graph.outputs)
    nodes, needed = live(scope.nodes.values(), outputs)
    return rename(graph, scope, nodes, needed, outputs), scope.fired


def rename(graph: Graph, scope: Scope, nodes: list[Node], needed: set[str], outputs: tuple[str, ...]) -> Graph:
    """Give replacements the names of what they replaced."""
    fixed = {v.name for v in graph.inputs} | {s.name for s in graph.states} | set(scope.params)
    kept = {v.name for n in nodes for v in n.outputs}
    names: dict[str, str] = {}
    given: set[str] = set()
    for old, new in scope.alias.items():
        if new in scope.fresh and new in kept and new not in names and old not in kept and old not in fixed and old not in given:
            if old in scope.fresh:
                continue
            names[new] = old
            given.add(old)

    def to(name: str) -> str:
        return names.get(name, name)

    def with_names(node: Node) -> Node:
        if not any(name in names for name in (*node.inputs, *(value.name for value in node.outputs))):
            return node
        outputs = tuple(replace(value, name=to(value.name)) for value in node.outputs)
        return replace(node, inputs=tuple(map(to, node.inputs)), outputs=outputs)

    renamed = [with_names(node) for node in nodes]
    params = tuple(p for p in scope.params.values() if p.name in needed)
    return replace(graph, params=params, nodes=tuple(renamed), outputs=tuple(map(to, outputs)))


def rewrite(graph: Graph, rules: Iterable[Rule]) -> Graph:
    """``graph`` with ``rules`` applied until none fires."""
    rules = tuple(rules)
    for _ in range(MAX_WALKS):
        graph, fired = walk(graph, rules)
        if not fired:
            return graph
    raise AssertionError("rewrite rules do not come to an end")
