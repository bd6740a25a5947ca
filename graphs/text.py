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
from collections.abc import Iterator
from dataclasses import replace

from ferrum.errors import FerrumError
from ferrum.graphs.dim_text import parse_dim
from ferrum.graphs.dims import Dim, print_dim
from ferrum.graphs.ir import STATE_KINDS, Attr, Graph, Node, Param, Region, Shape, State, Value
from ferrum.graphs.lines import MAX_DEPTH, Line, parse_attr, print_attr, quote, tokenize


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
