"""The text form of a graph: one line per input, state, parameter and node; ``parse_graph(print_graph(g)) == g``.

::

    graph qwen3
    input tokens: i64[batch, seq]
    state key.0: f32[2, 16] window(128)
    param embed.weight: f32[100, 64] from(model.embed_tokens.weight)
    param inv_freq: f32[2] data(1.0, 0.01)
    embedding: f32[batch, seq, 64] = embedding(tokens, embed.weight) {scale=1.0} @ "embed_tokens model.py:12"
    half: f32[batch, seq, 64] = map(embedding)
      region
        input x: f32[]
        y: f32[] = mul_scalar(x) {value=0.5}
        return y
    return half

A size is a number, a name or an expression: ``2 * seq + 1``. Several outputs of a node are separated by commas. A region
belongs to the node before it. A name that is not plain (letters, digits, ``_ . + -``) or that is one of the leading words is
written as a JSON string.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ferrum.errors import FerrumError
from ferrum.graphs.dim_text import parse_dim
from ferrum.graphs.dims import Dim, print_dim
from ferrum.graphs.ir import STATE_KINDS, Attr, Graph, Node, Param, Region, Shape, State, Value

KEYWORDS = frozenset({"graph", "input", "state", "param", "region", "return", "true", "false", "inf", "nan"})
MAX_DEPTH = 16  # of regions and tuples in one another
PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_.+-]*\Z")
TOKEN = re.compile(
    r"""\s*(?:(?P<string>"(?:[^"\\]|\\.)*")
          |(?P<number>-?(?:\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|inf(?![A-Za-z0-9_.+-])))
          |(?P<name>[A-Za-z_][A-Za-z0-9_.+-]*)
          |(?P<mark>//|[\[\](){}:=,@+*-]))""",
    re.VERBOSE,
)


def quote(name: str) -> str:
    return name if PLAIN.match(name) and name not in KEYWORDS else json.dumps(name)


def print_attr(value: Attr) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "(" + ", ".join(print_attr(item) for item in value) + ")"
    return json.dumps(value) if isinstance(value, str) else repr(value)


def print_value(value: Value) -> str:
    dims = ", ".join(print_dim(dim, quote) for dim in value.shape)
    return f"{quote(value.name)}: {quote(value.dtype)}[{dims}]"


def print_param(param: Param) -> str:
    text = f"param {print_value(param.value)}"
    if param.data is not None:
        text += f" data({', '.join(map(repr, param.data))})"
    if param.sources:
        text += f" from({', '.join(map(quote, param.sources))})"
    if param.format:
        text += f" format({quote(param.format)})"
    if param.layout:
        text += f" layout({quote(param.layout)})"
    return text


def print_state(state: State) -> str:
    text = f"state {print_value(Value(state.name, state.dtype, state.shape))} {quote(state.kind)}"
    return text + (f"({state.limit})" if state.limit else "")


def print_node(node: Node, origins: bool = True, indent: str = "") -> str:
    """The node's line, and those of its regions."""
    text = f"{indent}{', '.join(map(print_value, node.outputs))} = {quote(node.op)}({', '.join(map(quote, node.inputs))})"
    if node.attrs:
        text += " {" + ", ".join(f"{quote(key)}={print_attr(value)}" for key, value in sorted(node.attrs.items())) + "}"
    text = f"{text} @ {json.dumps(node.origin)}" if origins and node.origin else text
    return "\n".join([text, *(print_region(region, origins, indent + "  ") for region in node.regions)])


def print_region(region: Region, origins: bool, indent: str) -> str:
    lines = [f"{indent}region", *(f"{indent}  input {print_value(value)}" for value in region.inputs)]
    lines += [print_node(node, origins, indent + "  ") for node in region.nodes]
    return "\n".join([*lines, f"{indent}  {print_outputs(region.outputs)}"])


def print_outputs(names: tuple[str, ...]) -> str:
    return "return " + ", ".join(map(quote, names)) if names else "return"


def print_graph(graph: Graph, origins: bool = True) -> str:
    """The graph as text, one item a line. ``origins=False`` leaves the source lines out (for comparing two models)."""
    lines = [f"graph {quote(graph.name)}"]
    lines += [f"input {print_value(value)}" for value in graph.inputs]
    lines += [print_state(state) for state in graph.states]
    lines += [print_param(param) for param in graph.params]
    lines += [print_node(node, origins) for node in graph.nodes]
    return "\n".join([*lines, print_outputs(graph.outputs)]) + "\n"


@dataclass
class Line:
    """The tokens of one line, read from left to right."""

    number: int
    text: str
    tokens: list[tuple[str, str]]
    at: int = 0

    def fault(self, expected: str) -> FerrumError:
        found = self.tokens[self.at][1] if self.at < len(self.tokens) else "the end of the line"
        return FerrumError("graph-text", f"expected {expected}, found {found[:60]}", f"graph text, line {self.number}", "")

    def peek(self, text: str) -> bool:
        return self.at < len(self.tokens) and self.tokens[self.at] in (("mark", text), ("name", text))

    def ahead(self, text: str) -> bool:
        """Whether ``text`` comes after the next token."""
        return self.at + 1 < len(self.tokens) and self.tokens[self.at + 1] == ("mark", text)

    def take(self, text: str) -> bool:
        hit = self.peek(text)
        self.at += hit
        return hit

    def expect(self, text: str) -> None:
        if not self.take(text):
            raise self.fault(f"'{text}'")

    def done(self) -> None:
        if self.at < len(self.tokens):
            raise self.fault("the end of the line")

    def string(self, what: str) -> str:
        kind, text = self.tokens[self.at] if self.at < len(self.tokens) else ("", "")
        if kind not in ("name", "string"):
            raise self.fault(what)
        self.at += 1
        if kind == "name":
            return text
        try:
            return str(json.loads(text))
        except ValueError:
            self.at -= 1
            raise self.fault(what) from None

    def number_or(self) -> int | float | None:
        kind, text = self.tokens[self.at] if self.at < len(self.tokens) else ("", "")
        if kind == "name" and text in ("inf", "nan"):
            self.at += 1
            return float(text)
        if kind != "number":
            return None
        try:
            value = float(text) if any(c in text for c in ".eEn") else int(text)
        except ValueError:
            raise self.fault("a number") from None
        self.at += 1
        return value

    def names(self, end: str) -> tuple[str, ...]:
        out: list[str] = []
        while not self.take(end):
            if out:
                self.expect(",")
            out.append(self.string("a name"))
        return tuple(out)


def tokenize(number: int, text: str) -> Line:
    tokens: list[tuple[str, str]] = []
    at, end = 0, len(text.rstrip())
    while at < end:
        match = TOKEN.match(text, at)
        if match is None:
            raise FerrumError("graph-text", f"cannot read {text[at : at + 20].strip()!r}", f"graph text, line {number}", "")
        kind = match.lastgroup or ""
        tokens.append((kind, match.group(kind)))
        at = match.end()
    return Line(number, text, tokens)


def parse_shape(line: Line) -> Shape:
    line.expect("[")
    dims: list[Dim] = []
    while not line.take("]"):
        if dims:
            line.expect(",")
        dims.append(parse_dim(line))
    return tuple(dims)


def parse_value(line: Line) -> Value:
    name = line.string("a name")
    line.expect(":")
    return Value(name, line.string("a dtype"), parse_shape(line))


def parse_attr(line: Line, depth: int = 0) -> Attr:
    if line.take("("):
        if depth > MAX_DEPTH:
            raise line.fault("a tuple of one kind")
        items: list[Attr] = []
        while not line.take(")"):
            if items:
                line.expect(",")
            items.append(parse_attr(line, depth + 1))
        kinds = {type(item) for item in items}
        if len(kinds) > 1 or not kinds <= {int, float, str}:
            raise line.fault("a tuple of one kind")
        return tuple(items)  # type: ignore[return-value]
    if line.take("true"):
        return True
    if line.take("false"):
        return False
    number = line.number_or()
    return line.string("an attribute value") if number is None else number


def parse_param(line: Line) -> Param:
    value = parse_value(line)
    data: tuple[float, ...] | None = None
    sources: tuple[str, ...] = ()
    labels = {"format": "", "layout": ""}
    while line.at < len(line.tokens):
        word = line.string("from, data, format or layout")
        line.expect("(")
        if word == "data" and data is None:
            data = parse_data(line)
        elif word == "from" and not sources:
            sources = line.names(")")
        elif word in labels and not labels[word]:
            labels[word] = line.string("a label")
            line.expect(")")
        else:
            raise line.fault("from, data, format or layout, each once")
    return Param(value, sources, data, **labels)


def parse_data(line: Line) -> tuple[float, ...]:
    items: list[float] = []
    while not line.take(")"):
        if items:
            line.expect(",")
        number = line.number_or()
        if number is None:
            raise line.fault("a number")
        items.append(float(number))
    return tuple(items)


def parse_state(line: Line) -> State:
    value = parse_value(line)
    kind = line.string(f"one of {', '.join(STATE_KINDS)}")
    if not line.take("("):
        return State(value.name, kind, value.dtype, value.shape)
    limit = line.number_or()
    if not isinstance(limit, int):
        raise line.fault("a whole number")
    line.expect(")")
    return State(value.name, kind, value.dtype, value.shape, limit)


def parse_node(line: Line) -> Node:
    outputs = [parse_value(line)]
    while not line.take("="):
        line.expect(",")
        outputs.append(parse_value(line))
    op = line.string("an op")
    line.expect("(")
    inputs = line.names(")")
    attrs: dict[str, Attr] = {}
    if line.take("{"):
        while not line.take("}"):
            if attrs:
                line.expect(",")
            key = line.string("an attribute name")
            line.expect("=")
            if key in attrs:
                raise line.fault(f"attribute {key} once")
            attrs[key] = parse_attr(line)
    origin = line.string("an origin") if line.take("@") else ""
    return Node(op, inputs, tuple(outputs), attrs, origin)


def parse_graph(text: str) -> Graph:
    """The graph that ``text`` spells. Raises ``FerrumError`` (graph-text) with the line number; shapes are not checked here."""
    lines = (tokenize(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())
    first = next(lines, None)
    if first is None:
        raise unfinished()
    first.expect("graph")
    name = first.string("the graph's name")
    first.done()
    states: list[State] = []
    params: list[Param] = []
    body = parse_body(lines, states, params)
    for line in lines:
        raise line.fault("nothing after return")
    return Graph(name, body.inputs, tuple(params), body.nodes, body.outputs, tuple(states))


def parse_body(lines: Iterator[Line], states: list[State] | None, params: list[Param] | None, depth: int = 0) -> Region:
    """The lines up to ``return``; states and parameters, which a region has not, go into the lists."""
    inputs: list[Value] = []
    nodes: list[Node] = []
    for line in lines:
        if line.take("input"):
            inputs.append(parse_value(line))
        elif states is not None and line.take("state"):
            states.append(parse_state(line))
        elif params is not None and line.take("param"):
            params.append(parse_param(line))
        elif nodes and depth < MAX_DEPTH and line.take("region"):
            line.done()
            nodes[-1] = replace(nodes[-1], regions=(*nodes[-1].regions, parse_body(lines, None, None, depth + 1)))
        elif line.take("return"):
            return Region(tuple(inputs), tuple(nodes), parse_outputs(line))
        else:
            nodes.append(parse_node(line))
        line.done()
    raise unfinished()


def unfinished() -> FerrumError:
    return FerrumError("graph-text", "the text ends without a return line", "graph text", "")


def parse_outputs(line: Line) -> tuple[str, ...]:
    out: list[str] = []
    while line.at < len(line.tokens):
        if out:
            line.expect(",")
        out.append(line.string("a name"))
    return tuple(out)
