"""The text form of a graph: one line per input, parameter and node; ``parse_graph(print_graph(g)) == g``.

::

    graph qwen3
    input tokens: i64[batch, seq]
    param embed.weight: f32[100, 64] from(model.embed_tokens.weight)
    param inv_freq: f32[2] data(1.0, 0.01)
    embedding: f32[batch, seq, 64] = embedding(tokens, embed.weight) {scale=1.0} @ "embed_tokens model.py:12"
    return embedding

A name that is not plain (letters, digits, ``_ . + -``) or that is one of the five leading words is written as a JSON string.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass

from ferrum.errors import FerrumError
from ferrum.graphs.ir import Attr, Dim, Graph, Node, Param, Shape, Value

KEYWORDS = frozenset({"graph", "input", "param", "return", "true", "false", "inf", "nan"})
PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_.+-]*\Z")
TOKEN = re.compile(
    r"""\s*(?:(?P<string>"(?:[^"\\]|\\.)*")
          |(?P<number>-?(?:\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|inf(?![A-Za-z0-9_.+-])))
          |(?P<name>[A-Za-z_][A-Za-z0-9_.+-]*)
          |(?P<mark>[\[\](){}:=,@]))""",
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
    dims = ", ".join(quote(dim) if isinstance(dim, str) else str(dim) for dim in value.shape)
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


def print_node(node: Node, origins: bool = True) -> str:
    text = f"{print_value(node.output)} = {quote(node.op)}({', '.join(map(quote, node.inputs))})"
    if node.attrs:
        text += " {" + ", ".join(f"{quote(key)}={print_attr(value)}" for key, value in sorted(node.attrs.items())) + "}"
    return f"{text} @ {json.dumps(node.origin)}" if origins and node.origin else text


def print_graph(graph: Graph, origins: bool = True) -> str:
    """The graph as text, one item a line. ``origins=False`` leaves the source lines out (for comparing two models)."""
    lines = [f"graph {quote(graph.name)}"]
    lines += [f"input {print_value(value)}" for value in graph.inputs]
    lines += [print_param(param) for param in graph.params]
    lines += [print_node(node, origins) for node in graph.nodes]
    lines.append("return " + ", ".join(map(quote, graph.outputs)) if graph.outputs else "return")
    return "\n".join(lines) + "\n"


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


def parse_dim(line: Line) -> Dim:
    value = line.number_or()
    if isinstance(value, float):
        raise line.fault("an integer dim")
    return line.string("a dim") if value is None else value


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


def parse_attr(line: Line) -> Attr:
    if line.take("("):
        items: list[Attr] = []
        while not line.take(")"):
            if items:
                line.expect(",")
            items.append(parse_attr(line))
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


def parse_node(line: Line) -> Node:
    output = parse_value(line)
    line.expect("=")
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
    return Node(op, inputs, output, attrs, origin)


def parse_graph(text: str) -> Graph:
    """The graph that ``text`` spells. Raises ``FerrumError`` (graph-text) with the line number; shapes are not checked here."""
    lines = [tokenize(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    return parse_lines(lines)


def parse_lines(lines: Iterable[Line]) -> Graph:
    name, outputs = "", None
    inputs: list[Value] = []
    params: list[Param] = []
    nodes: list[Node] = []
    started = False
    for line in lines:
        if outputs is not None:
            raise line.fault("nothing after return")
        if not started:
            line.expect("graph")
            name, started = line.string("the graph's name"), True
        elif line.take("input"):
            inputs.append(parse_value(line))
        elif line.take("param"):
            params.append(parse_param(line))
        elif line.take("return"):
            outputs = parse_outputs(line)
        else:
            nodes.append(parse_node(line))
        line.done()
    if outputs is None:
        raise FerrumError("graph-text", "the text ends without a return line", "graph text", "")
    return Graph(name, tuple(inputs), tuple(params), tuple(nodes), outputs)


def parse_outputs(line: Line) -> tuple[str, ...]:
    out: list[str] = []
    while line.at < len(line.tokens):
        if out:
            line.expect(",")
        out.append(line.string("a name"))
    return tuple(out)
