"""Maps of a graph's nodes: of a region, of a value that is joined, padded or filled, of a view that someone wants in order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from ferrum.codegen.kernels.map import Map
from ferrum.codegen.kernels.map.body import Body, Operand, Part, dense, merged, operand
from ferrum.codegen.layouts.activations import ActFormat
from ferrum.codegen.target import GpuTarget
from ferrum.codegen.views import View, broadcast, contiguous, row_axes, row_dims
from ferrum.codegen.walk import Walk, number, rows_of
from ferrum.graphs.findings import Finding, UnsupportedOps
from ferrum.graphs.ir import Node
from ferrum.graphs.op_spec import axes

MOST_OPERANDS = 29  # Metal binds 31 buffers: these, the count and the result


def elements(walk: Walk, node: Node) -> None:
    """A ``map``: its region for each element."""
    shape = node.output.shape
    views = [broadcast(walk.view(name), walk.shapes[name], shape) for name in node.inputs]
    (act, output), args = walk.stored(node), Arguments(walk, node, views)
    dims = row_dims(shape)
    strides, _ = dense(dims)
    part = Part(dims, strides, 0, args.operands, node.regions[0], dtype=node.output.dtype)
    args.add(node, (part,), act, output)


def cat(walk: Walk, node: Node) -> None:
    views, axis = [walk.view(name) for name in node.inputs], row_axes(node.output.shape)[int(number(node, "axis"))]
    assert axis is not None, node
    args, dims = Arguments(walk, node, views), row_dims(node.output.shape)
    strides, at, parts = contiguous(dims), 0, []
    for view, read in zip(views, args.operands, strict=True):
        parts.append(Part(view.dims, strides, at * strides[axis], (read,), dtype=node.output.dtype))
        at += view.dims[axis]
    args.add(node, parts)


def repeat(walk: Walk, node: Node) -> None:
    """Copies side by side: one axis more, along which nothing changes."""
    view, times = walk.view(node.inputs[0]), int(number(node, "times"))
    axis = row_axes(walk.shapes[node.inputs[0]])[int(number(node, "axis"))]
    after = len(view.dims) if axis is None else axis + 1
    if axis is None:  # of the tokens: a token's copies come first in its row
        after = sum(place is not None for place in row_axes(walk.shapes[node.inputs[0]])[: int(number(node, "axis"))])
    dims = (*view.dims[:after], times, *view.dims[after:])
    copy_of(walk, node, replace(view, dims=dims, strides=(*view.strides[:after], 0, *view.strides[after:])))


def pad(walk: Walk, node: Node) -> None:
    view, out = walk.view(node.inputs[0]), row_dims(node.output.shape)
    places = row_axes(node.output.shape)
    before = [n for n, place in zip(axes(node.attrs, "before"), places, strict=True) if place is not None]
    strides = contiguous(out)
    args = Arguments(walk, node, [view])
    fill = Part(out, strides, 0, (), index=(number(node, "value"), 0.0), dtype=node.output.dtype)
    at = sum(n * stride for n, stride in zip(before, strides, strict=True))
    args.add(node, (fill, Part(view.dims, strides, at, args.operands, dtype=node.output.dtype)))


def filled(walk: Walk, node: Node) -> None:
    """``full`` and ``iota``: of the same numbers in every row."""
    dims = row_dims(node.output.shape)
    index = (number(node, "value"), 0.0) if node.op == "full" else (number(node, "start"), number(node, "step"))
    part = Part(dims, contiguous(dims), 0, (), index=(float(index[0]), float(index[1])), dtype=node.output.dtype)
    Arguments(walk, node, []).add(node, (part,))


def copy_of(walk: Walk, node: Node, view: View) -> None:
    """The elements of ``view`` in order, as the output of ``node``."""
    args = Arguments(walk, node, [view])
    strides, _ = dense(view.dims)
    act, output = walk.stored(node)
    args.add(node, (Part(view.dims, strides, 0, args.operands, dtype=view.dtype),), act, output)


class Arguments:
    """What the operands of a node are called as arguments of its kernel; a value with rows of its own comes first."""

    def __init__(self, walk: Walk, node: Node, views: Sequence[View]) -> None:
        self.walk = walk
        bases = list(dict.fromkeys(view.base for view in views))
        self.params = tuple(name for name in bases if name in walk.params)
        self.inputs = tuple(name for name in bases if name in walk.given)
        values = [name for name in bases if name not in (*self.params, *self.inputs)]
        own = [name for name in values if rows_of(walk.shapes[name]) == walk.rows(node)]
        self.own = bool(own)
        self.values = (*own, *(name for name in values if name not in own))
        self.operands: tuple[Operand, ...] = tuple(operand(view, self.arg(view.base)) for view in views)

    def arg(self, base: str) -> str:
        for kind, names in (("weight", self.params), ("value", self.values)):
            if base in names:
                return f"{kind}:{names.index(base)}"
        return f"input:{base}"

    def add(self, node: Node, parts: Sequence[Part], act: ActFormat | None = None, output: str = "") -> None:
        act = act or ActFormat("f32")
        k = math.prod(row_dims(node.output.shape))
        if isinstance(self.walk.target, GpuTarget) and len(self.params + self.inputs + self.values) > MOST_OPERANDS:
            module, _, source = node.origin.rpartition(" ")
            what = f"{node.op} of more than {MOST_OPERANDS} values"
            raise UnsupportedOps([Finding(what, module, source, "--target cpu")], f"graph {self.walk.graph.name}")
        kernel = Map(k, Body(tuple(map(merged, parts))), act, self.own)
        self.walk.add(node, kernel, self.values, self.params, self.walk.row_bytes(act, k), output or node.output.name)
