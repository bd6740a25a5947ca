"""Where the values of a step's layers can be seen, for ``layers.json``: results of products, look-ups and attention."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from typing import Literal

from ferrum.codegen.plan import Plan
from ferrum.codegen.views import row_dims
from ferrum.graphs.infer_state import KEEPS
from ferrum.graphs.ir import Graph, Node
from ferrum.pack.launches import SlotArg
from ferrum.pack.layers import LayerPoint

# What has large weights, or mixes tokens. Row-wise results show in the products that read them.
_MIXING = (*KEEPS, "attend")
_OPS = ("embedding", "linear", *_MIXING)
_LAYER = re.compile(r"(?:^|\.)(\d+)\.(.+)")


def layer_points(plan: Plan) -> dict[str, LayerPoint]:
    """By the name of the value in the graph before formats were chosen, in the order of the launches.

    A call ends with its last launch, whichever of its variants a step takes.
    """
    last = {id(call): index for index, (call, _) in enumerate(plan.launched)}
    placed = []
    for call in plan.calls:
        index = last[id(call)]
        kernel = plan.launched[index][1]
        if "result" in kernel.args:
            slot = plan.table.launches[index].args[kernel.args.index("result")]
            assert isinstance(slot, SlotArg)
            placed.append((call.output, call.row_bytes, index, slot.slot))
    return dict(_points(plan.graph, placed))


def _points(graph: Graph, placed: Iterable[tuple[str, int, int, int]]) -> Iterator[tuple[str, LayerPoint]]:
    """``placed``: (value, bytes of a row, launch, slot)."""
    producers, seen = graph.producers(), set()
    for name, row_bytes, launch, slot in placed:
        node, act = producers.get(name), "f32"
        if node is not None and node.op == "quantize":
            act, node = str(node.attrs["act"]), producers.get(node.inputs[0])
        if node is None or node.op not in _OPS or node.output.shape[0] != "tokens" or node.output.name in seen:
            continue
        dtype: Literal["f32", "bf16"]
        match act:
            case "f32" | "bf16":
                dtype = act
            case _:  # rows of integers and scales
                continue
        seen.add(node.output.name)
        layer, part = part_of(node)
        width = math.prod(row_dims(node.output.shape))
        point = LayerPoint(layer=layer, part=part, launch=launch, slot=slot, width=width, row_bytes=row_bytes, dtype=dtype)
        yield node.output.name, point


def part_of(node: Node) -> tuple[int, str]:
    """(layer or -1, part) of a node: by its weight's name, by its module where it has none of its own."""
    name = node.origin.split(" ")[0] if node.op in _MIXING else node.inputs[1].removesuffix(".weight")
    found = _LAYER.search(name)
    return (int(found[1]), found[2]) if found else (-1, name or node.op)
