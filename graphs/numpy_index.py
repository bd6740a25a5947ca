"""Operations that pick, place, order or slide along axes in numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from ferrum.graphs.ir import Node
from ferrum.graphs.numpy_run import Array, Kernel, Run
from ferrum.graphs.op_spec import axes, integer, number

Ints: TypeAlias = tuple[int, ...]


def cumsum(run: Run, node: Node) -> Array:
    x = run.get(node.inputs[0])
    return np.cumsum(x, axis=integer(node.attrs, "axis"), dtype=x.dtype)


def sort(run: Run, node: Node) -> tuple[Array, Array]:
    x, axis = run.get(node.inputs[0]), integer(node.attrs, "axis")
    at = np.argsort(-x if node.attrs["descending"] else x, axis=axis, kind="stable")
    return np.take_along_axis(x, at, axis), at.astype(np.int32)


def take(run: Run, node: Node) -> Array:
    x, at = run.all(node)
    return np.take(x, at, axis=integer(node.attrs, "axis"))


def gather(run: Run, node: Node) -> Array:
    x, at = run.all(node)
    return np.take_along_axis(x, at.astype(np.int64), integer(node.attrs, "axis"))


def scatter(put: Callable[[Array, tuple[Array, ...], Array], object]) -> Kernel:
    """``put(array, places, values)`` changes the array."""

    def kernel(run: Run, node: Node) -> Array:
        x, at, values = run.all(node)
        out = np.array(x)
        places: list[Array] = list(np.indices(at.shape, sparse=True))
        places[integer(node.attrs, "axis")] = at
        put(out, tuple(places), values)
        return out

    return kernel


def put(out: Array, places: tuple[Array, ...], values: Array) -> None:
    out[places] = values


def pad(run: Run, node: Node) -> Array:
    x = run.get(node.inputs[0])
    widths = list(zip(axes(node.attrs, "before"), axes(node.attrs, "after"), strict=True))
    return np.pad(x, widths, constant_values=x.dtype.type(number(node.attrs, "value")))


def conv(run: Run, node: Node) -> Array:
    x, weight = run.all(node)
    stride, padding, dilation = (axes(node.attrs, name) for name in ("stride", "padding", "dilation"))
    return convolved(x, weight, stride, padding, dilation, integer(node.attrs, "groups"))


def convolved(x: Array, weight: Array, stride: Ints, padding: Ints, dilation: Ints, groups: int) -> Array:
    """``x [batch, channels, sizes ..], weight [outputs, channels / groups, width ..] -> [batch, outputs, places ..]``."""
    rank = weight.ndim - 2
    x = np.pad(x, [(0, 0), (0, 0), *((p, p) for p in padding)])
    spans = tuple(d * (w - 1) + 1 for d, w in zip(dilation, weight.shape[2:], strict=True))
    windows = np.lib.stride_tricks.sliding_window_view(x, spans, axis=tuple(range(2, 2 + rank)))
    steps = tuple(slice(None, None, s) for s in stride) + tuple(slice(None, None, d) for d in dilation)
    windows = windows[(slice(None), slice(None), *steps)]  # [batch, channels, places .., width ..]
    inner = (1, *range(2 + rank, 2 + 2 * rank))
    parts = zip(np.split(windows, groups, axis=1), np.split(weight, groups), strict=True)
    out = [np.tensordot(part, own, (inner, range(1, 2 + rank))) for part, own in parts]  # [batch, places .., out]
    return np.moveaxis(np.concatenate(out, axis=-1), -1, 1)


def grouped_linear(run: Run, node: Node) -> Array:
    """Each row by itself, so that its bits depend on no other row; of a parameter only the matrices that rows name are read."""
    x, group = run.get(node.inputs[0]), run.get(node.inputs[2])
    rows, numbers = x.reshape(-1, x.shape[-1]), group.reshape(-1)
    out = np.empty((len(rows), run.shape(node.output.shape)[-1]), x.dtype)
    for number_ in np.unique(numbers):
        weight = matrix(run, node.inputs[1], int(number_))
        for i in np.flatnonzero(numbers == number_):
            out[i] = weight @ rows[i]
    return out.reshape(*x.shape[:-1], -1)


def matrix(run: Run, name: str, index: int) -> Array:
    """What is at ``index`` of the first axis."""
    if name in run.env:
        return np.asarray(run.env[name][index])
    return run.weights.rows(run.params[name], np.array([index]))[0].astype(run.dtype, copy=False)
