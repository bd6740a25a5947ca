"""The verifier: every rule that a graph must keep, all faults collected. It runs after every stage."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ferrum.errors import FerrumError
from ferrum.graphs.expressions.expression import ExpressionFault
from ferrum.graphs.expressions.sources import BINDINGS, Constant, External
from ferrum.graphs.ir import DTYPES, SYMBOLIC_DIMS, Graph, Node, Param, Value
from ferrum.graphs.ops import PAGED_OPS, OpFault, infer


def value_faults(value: Value) -> Iterator[str]:
    if not value.name:
        yield "a value has an empty name"
    if value.dtype not in DTYPES:
        yield f"{value.name}: dtype {value.dtype!r} is unknown"
    for dim in value.shape:
        if isinstance(dim, str) and dim not in SYMBOLIC_DIMS:
            yield f"{value.name}: symbolic dim {dim!r} is unknown"
        elif isinstance(dim, int) and dim < 1:
            yield f"{value.name}: dim {dim} is not positive"


def param_faults(param: Param) -> Iterator[str]:
    shape = param.value.shape
    if any(isinstance(dim, str) for dim in shape):
        yield f"param {param.name}: a parameter has fixed dims"
        return
    if param.shard is not None and (not 0 <= param.shard < len(shape) or isinstance(param.source, Constant)):
        yield f"param {param.name}: no shards along axis {param.shard}"
    yield from (f"param {param.name}: {fault}" for fault in source_faults(param))


def source_faults(param: Param) -> Iterator[str]:
    source = param.source
    if isinstance(source, External):
        if source.bound not in BINDINGS:
            yield f"bound at {source.bound!r}, which is not one of {', '.join(BINDINGS)}"
    elif isinstance(source, Constant):
        size = math.prod(param.shape)
        if source.values.size != size:
            yield f"{source.values.size} data elements for a shape of {size}"
    else:
        try:
            found = source.type
        except ExpressionFault as fault:
            yield str(fault)
            return
        if (found.dtype, found.shape) != (param.value.dtype, param.shape):
            yield f"declared {param.value.dtype}{list(param.shape)}, but it is made as {found.dtype}{list(found.shape)}"


def node_faults(node: Node, known: dict[str, Value], paged: bool) -> Iterator[str]:
    where = f"{node.output.name} = {node.op}"
    missing = [name for name in node.inputs if name not in known]
    for name in missing:
        yield f"{where}: input {name!r} is not defined before it is used"
    if paged and node.op not in PAGED_OPS:
        yield f"{where}: not an op of a finished graph" + (f" ({node.origin})" if node.origin else "")
    if missing:
        return
    try:
        dtype, shape = infer(node.op, tuple(known[name] for name in node.inputs), node.attrs, node.output)
    except OpFault as fault:
        yield f"{where}: {fault}"
        return
    if (dtype, shape) != (node.output.dtype, node.output.shape):
        yield f"{where}: declared {node.output.dtype}{list(node.output.shape)}, but it is {dtype}{list(shape)}"


def faults(graph: Graph, paged: bool = False) -> list[str]:
    """All broken rules of ``graph``, empty when it is sound. ``paged`` also asks for the finished graph's ops only."""
    found: list[str] = []
    known: dict[str, Value] = {}

    def define(value: Value) -> None:
        found.extend(value_faults(value))
        if value.name in known:
            found.append(f"{value.name}: defined twice")
        known[value.name] = value

    for value in graph.inputs:
        define(value)
    for param in graph.params:
        found.extend(param_faults(param))
        define(param.value)
    for node in graph.nodes:
        found.extend(node_faults(node, known, paged))
        define(node.output)
    found.extend(f"output {name!r} is not defined" for name in graph.outputs if name not in known)
    if not graph.outputs:
        found.append("the graph has no outputs")
    return found


def verify(graph: Graph, stage: str = "", paged: bool = False) -> Graph:
    """``graph`` itself. Raises ``FerrumError`` (graph-invalid) that quotes the first faults and counts the rest."""
    found = faults(graph, paged)
    if found:
        more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
        where = f"graph {graph.name}" + (f" after {stage}" if stage else "")
        raise FerrumError("graph-invalid", "; ".join(found[:3]) + more, where, "report this model, or fix the edited graph text")
    return graph
