"""The end of a step: the rows that are sampled → final norm → LM head → ``sample``.

Behind the last layer only rows whose logits are wanted go on, so the pass picks them in front of the final norm and the LM head,
and what is drawn from the logits becomes an op whose inputs and outputs are arrays of the step. In an encoder's graph, whose
``pool`` makes one row of each sequence, all that follows it is on these rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ferrum.graphs.dims import substitute
from ferrum.graphs.findings import Finding, UnsupportedOps
from ferrum.graphs.ir import Graph, Node, Value
from ferrum.graphs.passes.page_rows import POINTWISE, has_tokens
from ferrum.graphs.programs import program_of
from ferrum.graphs.step_arrays import step_value
from ferrum.pack.schema import ENCODE
from ferrum.pack.step import INPUTS, OUTPUTS, SAMPLING

NORMS = ("rms_norm", "layer_norm")
CHOICES = ("where", "cast", "map")  # what gives other ids for some tokens, those of pictures say
MIXING = ("attend", "recur")  # what has several tokens of a sequence
TAIL = frozenset({"linear", *NORMS, *POINTWISE})
PICKED = step_value(next(array for array in INPUTS if array.name == "sample_rows"))


def tail_of(graph: Graph) -> list[Node]:
    """What only the logits need: the nodes from the final norm, or from where several values of tokens meet, to the first output.

    Empty: no linear is among them.
    """
    producers, users, types = graph.producers(), graph.users(), graph.values()
    found: list[Node] = []
    name = graph.outputs[0]
    while (node := producers.get(name)) is not None and node.op in TAIL and (not found or len(users[name]) == 1):
        rows = rows_of(node, types)
        if len(rows) != 1:
            break
        found.append(node)
        if node.op in NORMS:
            break
        name = rows[0]
    return found[::-1] if any(node.op == "linear" for node in found) else []


def rows_of(node: Node, types: Mapping[str, Value]) -> list[str]:
    """Which inputs of ``node`` hold something for each token."""
    return [name for name in node.inputs if any(map(has_tokens, types[name].shape))]


def end_findings(graph: Graph) -> list[Finding]:
    """What keeps a decoder from having a tail."""
    if program_of(graph) == ENCODE or tail_of(graph):
        return []
    return [Finding("a graph that does not end in a linear", "", "", "an LM head")]


def form_findings(graph: Graph) -> list[Finding]:
    """What a finished graph lacks at its end: rows of sequences, or tokens that are drawn, of ids that the table has (it may have
    more)."""
    if program_of(graph) == ENCODE:
        pooled = graph.values()[graph.outputs[0]].shape
        fits = len(pooled) == 2 and pooled[0] == "samples"
        return [] if fits else [Finding("a graph that does not end in one row of each sequence", "", "", "the stage tail")]
    drawn = next((node for node in graph.nodes if node.op == "sample"), None)
    if drawn is None:
        return [Finding("a graph that draws no tokens", "", "", "the stage tail")]
    values, made = graph.values(), {"tokens"}
    wanted = values[drawn.inputs[0]].shape[1]
    for node in graph.nodes:
        if node.op in CHOICES and made & set(node.inputs) and values[node.output.name].dtype in ("i32", "i64"):
            made.add(node.output.name)
        elif node.op == "embedding" and node.inputs[0] in made:
            rows = values[node.inputs[1]].shape[0]
            if isinstance(rows, int) and isinstance(wanted, int) and rows < wanted:
                return [Finding(f"logits of other tokens than the {rows} of the embedding", "", "", "one vocabulary")]
    return []


def run(graph: Graph) -> Graph:
    """``graph`` with its tail. Raises ``UnsupportedOps`` when there is none, or none on rows of tokens."""
    if any(node.op == "sample" for node in graph.nodes):
        return graph
    if program_of(graph) == ENCODE:
        return pooled_rows(graph)
    if found := end_findings(graph):
        raise UnsupportedOps(found, f"graph {graph.name}")
    tail = {node.output.name: node for node in tail_of(graph)}
    first, logits = next(iter(tail.values())), graph.outputs[0]
    taken = graph.values()
    (last,) = rows_of(first, taken)
    if taken[last].shape[0] != "tokens":
        odd = Finding("an LM head on another form than a row for each token", "", "", "an LM head")
        raise UnsupportedOps([odd], f"graph {graph.name}")
    rows = Value(_free("gather_rows", taken), "f32", ("samples", *taken[last].shape[1:]))
    nodes: list[Node] = []
    for node in graph.nodes:
        if node is first:
            nodes.append(Node("gather_rows", (last, PICKED.name), (rows,), {}, first.origin))
            node = replace(node, inputs=tuple(rows.name if name == last else name for name in node.inputs))
        if node.output.name in tail:
            shape = tuple(substitute(dim, {"tokens": "samples"}) for dim in node.output.shape)
            node = replace(node, outputs=(replace(node.output, shape=shape),))
        nodes.append(node)
    given = [step_value(array, int(taken[logits].shape[-1])) for array in SAMPLING]
    drawn = tuple(map(step_value, OUTPUTS))
    nodes.append(Node("sample", (logits, *(value.name for value in given)), drawn, {}, tail[logits].origin))
    outputs = (logits, *(value.name for value in drawn), *graph.outputs[1:])
    return replace(graph, inputs=(*graph.inputs, PICKED, *given), nodes=tuple(nodes), outputs=outputs)


def pooled_rows(graph: Graph) -> Graph:
    """An encoder's graph, of which ``pool`` and all that reads it has one row of each sequence."""
    behind: set[str] = set()
    nodes: list[Node] = []
    if any(value.name == PICKED.name for value in graph.inputs):
        return graph
    for node in graph.nodes:
        pooling = node.op == "pool"
        if pooling or behind.intersection(node.inputs):
            if node.op in MIXING:
                odd = Finding(f"{node.op} behind the pooling", "", "", "layers before it")
                raise UnsupportedOps([odd], f"graph {graph.name}")
            behind.update(value.name for value in node.outputs)
            shapes = (tuple(substitute(dim, {"tokens": "samples"}) for dim in value.shape) for value in node.outputs)
            outputs = tuple(replace(value, shape=shape) for value, shape in zip(node.outputs, shapes, strict=True))
            node = replace(node, outputs=outputs, inputs=(*node.inputs, PICKED.name) if pooling else node.inputs)
        nodes.append(node)
    return replace(graph, inputs=(*graph.inputs, PICKED), nodes=tuple(nodes))


def _free(stem: str, taken: dict[str, Value]) -> str:
    return next(name for name in (stem, *(f"{stem}.{n}" for n in range(1, len(taken) + 2))) if name not in taken)
