"""Which calls compute a ``grouped_linear`` node."""

from __future__ import annotations

import math

from ferrum.codegen.kernels.arrays import Operands, dense
from ferrum.codegen.kernels.grouped_linear.bucket import Bucket, BucketRows, list_bytes
from ferrum.codegen.kernels.grouped_linear.cpu import CpuGroupedLinear
from ferrum.codegen.kernels.grouped_linear.plain import PlainGroupedLinear
from ferrum.codegen.kernels.linear.choose import cut
from ferrum.codegen.layouts import RowLayout, StackedLayout, TiledLayout, parse_layout
from ferrum.codegen.layouts.activations import act_for
from ferrum.codegen.target import Target
from ferrum.codegen.tuned import blocking
from ferrum.codegen.views import row_dims, whole
from ferrum.codegen.walk import Walk
from ferrum.graphs.ir import Node


def on_cpu(walk: Walk, node: Node) -> None:
    """The rows of each matrix as a list, then the rows themselves in its order, then the product."""
    param, target, name = walk.graph.param(node.inputs[1]), walk.target, node.output.name
    layout = parse_layout(param.layout, param.format, param.shape)
    assert isinstance(target, Target) and isinstance(layout, StackedLayout) and isinstance(layout.matrix, TiledLayout)
    matrix, times = layout.matrix, math.prod(row_dims(node.output.shape)[:-1])
    act = act_for(matrix.format, matrix.k, target.rounds_to_bf16, walk.activations == "f32")
    block = blocking(target, matrix.format, walk.tuned, act)
    listed = runs(walk, node, layout.count, times)
    x = walk.view(node.inputs[0])
    if x.strides[-1] != 1:  # rows are read where they lie, but each of them in one run
        x = dense(walk, node.inputs[0], node.origin)
    found = Operands(walk, node, [x, whole(listed, "i32", True, ())])
    lying, order = found.read
    rows = BucketRows(lying, order, act)
    walk.add(node, rows, tuple(found.values), tuple(found.params), rows.row_bytes, f"{name}.sorted")
    kernel = CpuGroupedLinear(
        matrix.n, matrix.k, matrix, False, False, "", act, count=layout.count, times=times, **cut(matrix, target, block)
    )
    walk.add(node, kernel, (f"{name}.sorted", listed), node.inputs[1:2], 4 * times * matrix.n)


def on_gpu(walk: Walk, node: Node) -> None:
    param = walk.graph.param(node.inputs[1])
    layout = parse_layout(param.layout, param.format, param.shape)
    assert isinstance(layout, StackedLayout) and isinstance(layout.matrix, RowLayout)
    matrix = layout.matrix
    found = Operands(walk, node, [walk.view(node.inputs[0]), dense(walk, node.inputs[2], node.origin)])
    x, group = found.read
    found.params.append(node.inputs[1])
    kernel = PlainGroupedLinear(matrix.n, matrix.k, matrix, layout.count, x, group, found.result())
    walk.add(node, kernel, tuple(found.values), tuple(found.params), 4 * kernel.times * matrix.n)


def runs(walk: Walk, node: Node, count: int, times: int) -> str:
    """The list of rows by matrix, which all products with the same numbers share."""
    group = dense(walk, node.inputs[2], node.origin)
    found = Operands(walk, node, [group])
    values, params = tuple(found.values), tuple(found.params)
    key = ("grouped_linear", group, count)
    kernel = Bucket(found.read[0], count)
    return walk.once(key, node, kernel, params, list_bytes(times), f"{node.output.name}.runs", values)
