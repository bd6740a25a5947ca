"""The verifier: every rule that a graph must keep, all faults collected. It runs after every stage."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ferrum.errors import FerrumError
from ferrum.graphs.dims import symbols
from ferrum.graphs.expressions.expression import ExpressionFault
from ferrum.graphs.expressions.sources import BINDINGS, Constant, External
from ferrum.graphs.infer_state import state_faults, version_faults
from ferrum.graphs.ir import DTYPES, STATE_KINDS, Graph, Node, Param, Region, Value
from ferrum.graphs.op_spec import OpFault, show
from ferrum.graphs.ops import PAGED_OPS, infer

MAX_DEPTH = 16  # of regions in one another


def known_symbols(graph: Graph) -> set[str]:
    """The sizes that a run knows: those of its inputs, ``tokens`` of batch and seq, the sequences whose states it is given."""
    found = {dim for value in graph.inputs for dim in value.shape if isinstance(dim, str)}
    return found | ({"tokens"} if {"batch", "seq"} <= found else set()) | ({"seqs"} if graph.states else set())


def value_faults(value: Value, sizes: set[str]) -> Iterator[str]:
    if not value.name:
        yield "a value has an empty name"
    if value.dtype not in DTYPES and value.dtype not in STATE_KINDS:
        yield f"{value.name}: dtype {value.dtype!r} is unknown"
    for dim in value.shape:
        if isinstance(dim, int):
            if dim < 1:
                yield f"{value.name}: dim {dim} is not positive"
            continue
        for name in sorted(symbols(dim) - sizes):
            yield f"{value.name}: symbolic dim {name!r} is unknown: no input has it"


def param_faults(param: Param) -> Iterator[str]:
    shape = param.value.shape
    if not all(isinstance(dim, int) for dim in shape):
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
    if not node.outputs:
        yield f"{node.op}: a node without outputs"
        return
    where = f"{node.output.name} = {node.op}"
    missing = [name for name in node.inputs if name not in known]
    for name in missing:
        yield f"{where}: input {name!r} is not defined before it is used"
    if paged and node.op not in PAGED_OPS:
        yield f"{where}: not an op of a finished graph" + (f" ({node.origin})" if node.origin else "")
    if missing:
        return
    try:
        results = infer(node.op, tuple(known[name] for name in node.inputs), node.attrs, node.outputs, node.regions)
    except OpFault as fault:
        yield f"{where}: {fault}"
        return
    if len(results) != len(node.outputs):
        yield f"{where}: {len(node.outputs)} outputs, expected {len(results)}"
        return
    for value, (dtype, shape) in zip(node.outputs, results, strict=True):
        if (dtype, shape) != (value.dtype, value.shape):
            yield f"{where}: declared {value.dtype}{show(value.shape)}, but it is {dtype}{show(shape)}"


class Names:
    """The values of a graph or a region as they are defined, and what is wrong with them."""

    def __init__(self, sizes: set[str]) -> None:
        self.sizes = sizes
        self.known: dict[str, Value] = {}
        self.found: list[str] = []

    def define(self, value: Value) -> None:
        self.found.extend(value_faults(value, self.sizes))
        if value.name in self.known:
            self.found.append(f"{value.name}: defined twice")
        self.known[value.name] = value

    def body(self, nodes: tuple[Node, ...], outputs: tuple[str, ...], paged: bool, depth: int) -> None:
        for node in nodes:
            self.found.extend(node_faults(node, self.known, paged))
            for region in node.regions:
                self.found.extend(region_faults(region, self.sizes, f"{node.op} region", depth))
            for value in node.outputs:
                self.define(value)
        self.found.extend(f"output {name!r} is not defined" for name in outputs if name not in self.known)


def region_faults(region: Region, sizes: set[str], where: str, depth: int) -> list[str]:
    if depth >= MAX_DEPTH:
        return [f"{where}: more than {MAX_DEPTH} regions in one another"]
    names = Names(sizes)
    for value in region.inputs:
        names.define(value)
        if value.dtype in STATE_KINDS:
            names.found.append(f"{value.name}: a region reads no state")
    names.body(region.nodes, region.outputs, False, depth + 1)
    if not region.outputs:
        names.found.append("the region has no outputs")
    return [f"{where}: {fault}" for fault in names.found]


def faults(graph: Graph, paged: bool = False) -> list[str]:
    """All broken rules of ``graph``, empty when it is sound. ``paged`` also asks for the finished graph's ops only."""
    names = Names(known_symbols(graph))
    for value in graph.inputs:
        names.define(value)
        if value.dtype in STATE_KINDS:
            names.found.append(f"{value.name}: an input of dtype {value.dtype!r} that is no state")
    for state in graph.states:
        names.found.extend(state_faults(state))
        names.define(state.value)
    for param in graph.params:
        names.found.extend(param_faults(param))
        names.define(param.value)
    names.body(graph.nodes, graph.outputs, paged, 0)
    if not graph.outputs:
        names.found.append("the graph has no outputs")
    return [*names.found, *version_faults(graph)]


def verify(graph: Graph, stage: str = "", paged: bool = False) -> Graph:
    """``graph`` itself. Raises ``FerrumError`` (graph-invalid) that quotes the first faults and counts the rest."""
    found = faults(graph, paged)
    if found:
        more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
        where = f"graph {graph.name}" + (f" after {stage}" if stage else "")
        raise FerrumError("graph-invalid", "; ".join(found[:3]) + more, where, "report this model, or fix the edited graph text")
    return graph
