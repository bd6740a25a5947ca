"""The text form of a graph: one line per input, state, parameter and node; ``parse_graph(print_graph(g)) == g``.

::

    graph qwen3
    input tokens: i64[batch, seq]
    state key.0: f32[2, 16] window(128)
    param embed.weight: f32[100, 64] from(model.embed_tokens.weight)
    param qkv: f32[12, 64] from(cat(q.weight[8, 64], k.weight[2, 64], v.weight[2, 64], axis=0))
    param inv_freq: f32[2] data(1.0, 0.01)
    param adapter: f32[8, 64] external(request)
    embedding: f32[batch, seq, 64] = embedding(tokens, embed.weight) {scale=1.0} @ "embed_tokens model.py:12"
    half: f32[batch, seq, 64] = map(embedding)
      region
        input x: f32[]
        y: f32[] = mul_scalar(x) {value=0.5}
        return y
    return half

A size is a number, a name or an expression: ``2 * seq + 1``. Several outputs of a node are separated by commas. A region
belongs to the node before it. A parameter's ``from`` holds an expression (``expression_text.py``); a tensor's name alone is a
tensor of the parameter's shape. A name that is not plain (letters, digits, ``_ . + -``) or that is one of the leading words is
written as a JSON string.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from ferrum.errors import FerrumError
from ferrum.graphs.dim_text import parse_dim
from ferrum.graphs.dims import Dim, print_dim
from ferrum.graphs.expression_text import parse_expression, print_expression
from ferrum.graphs.expressions.expression import Tensor
from ferrum.graphs.expressions.sources import Constant, External, Floats, Source
from ferrum.graphs.ir import STATE_KINDS, Attr, Graph, Node, Param, Region, Shape, State, Value
from ferrum.graphs.lines import MAX_DEPTH, Line, parse_attr, print_attr, quote, tokenize

LONGEST_DATA = 256  # numbers of a constant in the text; longer ones are named by their digest


def print_value(value: Value) -> str:
    dims = ", ".join(print_dim(dim, quote) for dim in value.shape)
    return f"{quote(value.name)}: {quote(value.dtype)}[{dims}]"


def print_param(param: Param) -> str:
    text = f"param {print_value(param.value)}"
    text += f" {print_source(param)}"
    if param.shard is not None:
        text += f" shard({param.shard})"
    if param.format:
        text += f" format({quote(param.format)})"
    if param.layout:
        text += f" layout({quote(param.layout)})"
    return text


def print_source(param: Param) -> str:
    """``from(..)``, ``data(..)`` or ``external(..)``; a tensor that is the whole parameter is its name alone."""
    source, value = param.source, param.value
    if isinstance(source, External):
        return f"external({quote(source.bound)})"
    if isinstance(source, Constant):
        short = source.values.size <= LONGEST_DATA
        return f"data({', '.join(map(repr, source.values.tolist())) if short else json.dumps(source.digest)})"
    plain = isinstance(source, Tensor) and (source.shape, source.dtype) == (value.shape, "f32")
    return f"from({quote(source.name) if plain and isinstance(source, Tensor) else print_expression(source)})"


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


def parse_param(line: Line, constants: Constants) -> Param:
    value = parse_value(line)
    source: Source | None = None
    shard: int | None = None
    labels = {"format": "", "layout": ""}
    while line.at < len(line.tokens):
        word = line.string("from, data, external, shard, format or layout")
        line.expect("(")
        if word in SOURCES and source is None:
            source = SOURCES[word](line, value, constants)
        elif word == "shard" and shard is None:
            shard = line.integer("an axis")
        elif word in labels and not labels[word]:
            labels[word] = line.string("a label")
        else:
            raise line.fault("a source, shard, format or layout, each once")
        line.expect(")")
    if source is None:
        raise line.fault("from, data or external")
    return Param(value, source, shard, **labels)


def parse_from(line: Line, value: Value, constants: Constants) -> Source:
    at = line.at
    name = line.string("an expression")
    if line.peek(")"):
        return Tensor(name, tuple(dim for dim in value.shape if isinstance(dim, int)))
    line.at = at
    return parse_expression(line)


def parse_data(line: Line, value: Value, constants: Constants) -> Constant:
    if not line.peek(")") and line.tokens[line.at][0] == "string":
        digest = line.string("a digest")
        if digest not in constants:
            raise FerrumError(
                "graph-text", f"the numbers of {value.name} are not there", f"graph text, line {line.number}",
                "keep the file of constants beside the text",
            )  # fmt: skip
        return Constant(constants[digest])
    items: list[float] = []
    while not line.peek(")"):
        if items:
            line.expect(",")
        number = line.number_or()
        if number is None:
            raise line.fault("a number")
        items.append(float(number))
    return Constant(items)


def parse_external(line: Line, value: Value, constants: Constants) -> External:
    return External(line.string("when it is bound"))


Constants: TypeAlias = Mapping[str, Floats]
SOURCES: Mapping[str, Callable[[Line, Value, Constants], Source]] = {
    "from": parse_from,
    "data": parse_data,
    "external": parse_external,
}


def parse_state(line: Line) -> State:
    value = parse_value(line)
    kind = line.string(f"one of {', '.join(STATE_KINDS)}")
    if not line.take("("):
        return State(value.name, kind, value.dtype, value.shape)
    limit = line.integer("a whole number")
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


@dataclass
class Head:
    """What a graph has and a region has not; ``constants``: long ones by digest."""

    constants: Constants
    states: list[State] = field(default_factory=list)
    params: list[Param] = field(default_factory=list)


def parse_graph(text: str, constants: Constants | None = None) -> Graph:
    """The graph that ``text`` spells, with long ``constants`` by digest.

    Raises ``FerrumError`` (graph-text) with the line number; shapes are not checked here.
    """
    lines = (tokenize(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())
    first = next(lines, None)
    if first is None:
        raise unfinished()
    first.expect("graph")
    name, head = first.string("the graph's name"), Head(constants or {})
    first.done()
    body = parse_body(lines, head)
    for line in lines:
        raise line.fault("nothing after return")
    return Graph(name, body.inputs, tuple(head.params), body.nodes, body.outputs, tuple(head.states))


def parse_body(lines: Iterator[Line], head: Head | None, depth: int = 0) -> Region:
    """The lines up to ``return``; what stands before the nodes of a graph goes into ``head``."""
    inputs: list[Value] = []
    nodes: list[Node] = []
    for line in lines:
        if line.take("input"):
            inputs.append(parse_value(line))
        elif head is not None and line.take("state"):
            head.states.append(parse_state(line))
        elif head is not None and line.take("param"):
            head.params.append(parse_param(line, head.constants))
        elif nodes and depth < MAX_DEPTH and line.take("region"):
            line.done()
            nodes[-1] = replace(nodes[-1], regions=(*nodes[-1].regions, parse_body(lines, None, depth + 1)))
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
