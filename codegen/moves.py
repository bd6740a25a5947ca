"""Ops that move elements and compute nothing: views of what is there, or a copy where no strides say what they do."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ferrum.codegen.kernels.map.choose import cat, copy_of, filled, pad, repeat
from ferrum.codegen.views import View, broadcast, permuted, reshaped, row_axes, row_dims, sliced
from ferrum.codegen.walk import Walk
from ferrum.graphs.ir import Node, Value
from ferrum.graphs.op_spec import axes, integer


def reshape(walk: Walk, node: Node) -> None:
    view, dims = walk.view(node.inputs[0]), row_dims(node.output.shape)
    found = reshaped(view, dims)
    if found is None:
        copy_of(walk, node, view)
    else:
        walk.views[node.output.name] = found


def permute(walk: Walk, node: Node) -> None:
    """The axis of tokens may go anywhere: rows stay rows."""
    places = row_axes(walk.shapes[node.inputs[0]])
    order = [place for axis in axes(node.attrs, "order") if (place := places[axis]) is not None]
    walk.views[node.output.name] = permuted(walk.view(node.inputs[0]), order)


def expand(walk: Walk, node: Node) -> None:
    name = node.inputs[0]
    walk.views[node.output.name] = broadcast(walk.view(name), walk.shapes[name], node.output.shape)


def slice_axis(walk: Walk, node: Node) -> None:
    cut(walk, node, node.output, integer(node.attrs, "start"))


def split(walk: Walk, node: Node) -> None:
    start = 0
    for value, size in zip(node.outputs, axes(node.attrs, "sizes"), strict=True):
        cut(walk, node, value, start)
        start += size


def cut(walk: Walk, node: Node, value: Value, start: int) -> None:
    name, axis = node.inputs[0], integer(node.attrs, "axis")
    place, size = row_axes(walk.shapes[name])[axis], value.shape[axis]
    assert place is not None and isinstance(size, int), node
    walk.views[value.name] = sliced(walk.view(name), place, start, start + size)


MOVES: Mapping[str, Callable[[Walk, Node], None]] = {
    "reshape": reshape,
    "permute": permute,
    "expand": expand,
    "slice": slice_axis,
    "split": split,
    "cat": cat,
    "repeat": repeat,
    "pad": pad,
    "full": filled,
    "iota": filled,
}


def in_order(walk: Walk, name: str, origin: str) -> str:
    """The stored value whose rows are those of ``name``, copied if they lie otherwise; a parameter is as it is."""
    view = walk.views.get(name)
    if view is None or name in walk.params:
        return name
    stored = view.base not in walk.params | walk.given
    return view.base if view.plain and stored else copied(walk, name, origin)


def copied(walk: Walk, name: str, origin: str) -> str:
    """A value with the elements of ``name`` in order, made once."""
    made = f"{name}.rows"
    if made not in walk.shapes:
        shape, dtype = walk.shapes[name], walk.dtypes[name]
        walk.shapes[made], walk.dtypes[made] = shape, dtype
        copy_of(walk, Node("reshape", (name,), (Value(made, dtype, shape),), {}, origin), walk.view(name))
    return made


def value_view(walk: Walk, name: str, origin: str) -> View:
    """How the elements of a value lie in one that is stored; those of a parameter or an input of the step become one."""
    view = walk.view(name)
    if view.base in walk.params | walk.given:
        return walk.view(copied(walk, name, origin))
    return view


def put_in_order(walk: Walk, node: Node) -> None:
    """What kernels that know nothing of views read of ``node`` is stored in order; ``walk.places`` says where."""
    for name in node.inputs:
        if (place := in_order(walk, name, node.origin)) != name:
            walk.places[name] = place
