"""How values lie in memory, row by row, so that what only moves elements costs nothing until someone must have them in order.

A value has an axis of tokens (or samples) somewhere, or none. Its row is everything else, in the order of the axes, four bytes an
element; rows follow each other. So an op that moves the axis of tokens changes nothing, and slices, reshapes, permutations and
expansions of a row are a ``View`` of it: an offset and strides, which kernels that compute addresses read as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ferrum.graphs.dims import Dim
from ferrum.graphs.ir import Shape
from ferrum.graphs.passes.page_rows import has_tokens, repeats


@dataclass(frozen=True)
class View:
    """A row's elements in the rows of ``base`` (a stored value, a parameter or an input of the step), counted in elements.

    ``width``: elements of a row of the base. ``rows``: the base has a row for each token or sample; a parameter has one for all.
    """

    base: str
    dtype: str
    rows: bool
    width: int
    dims: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0

    @property
    def plain(self) -> bool:
        """Whether the rows are those of the base, element by element."""
        return self.rows and self.offset == 0 and self.width == math.prod(self.dims) and self.packed(0)

    def packed(self, axis: int) -> bool:
        """Whether the axes from ``axis`` on lie without gaps, in order."""
        pairs = zip(self.dims[axis:], self.strides[axis:], contiguous(self.dims)[axis:], strict=True)
        return all(stride == wanted or dim == 1 for dim, stride, wanted in pairs)


def contiguous(dims: Sequence[int]) -> tuple[int, ...]:
    return tuple(math.prod(dims[axis + 1 :]) for axis in range(len(dims)))


def whole(base: str, dtype: str, rows: bool, dims: tuple[int, ...]) -> View:
    return View(base, dtype, rows, math.prod(dims), dims, contiguous(dims))


def row_axes(shape: Shape) -> list[int | None]:
    """For each axis of a value, the axis of its row; None for that of the tokens."""
    found: list[int | None] = []
    for dim in shape:
        alone = has_tokens(dim) and repeats(dim) == 1
        found.append(None if alone else sum(axis is not None for axis in found))
    return found


def row_dims(shape: Shape) -> tuple[int, ...]:
    """The axes of a row; of an axis of several elements for each token, those of one token."""
    return tuple(_size(dim) for dim in shape if not (has_tokens(dim) and repeats(dim) == 1))


def _size(dim: Dim) -> int:
    return repeats(dim) if has_tokens(dim) else int(dim)


def permuted(view: View, order: Sequence[int]) -> View:
    return replace(view, dims=tuple(view.dims[i] for i in order), strides=tuple(view.strides[i] for i in order))


def sliced(view: View, axis: int, start: int, end: int) -> View:
    dims = (*view.dims[:axis], end - start, *view.dims[axis + 1 :])
    return replace(view, dims=dims, offset=view.offset + start * view.strides[axis])


def reshaped(view: View, dims: tuple[int, ...]) -> View | None:
    """The same elements in other axes; None where no strides say that."""
    if not dims or not view.dims:
        return replace(view, dims=dims, strides=(0,) * len(dims))
    old = [(dim, stride) for dim, stride in zip(view.dims, view.strides, strict=True) if dim != 1]
    strides: list[int] = []
    at = 0
    for dim in dims:
        if dim == 1:
            strides.append(0)
            continue
        if at == len(old):
            return None
        size, stride = old[at]
        left = dim
        while size < left:  # several old axes are one new one, if they lie in one another
            at += 1
            if left % size or at == len(old) or old[at - 1][1] != old[at][0] * old[at][1]:
                return None
            left //= size
            size, stride = old[at]
        if size % left:
            return None
        if dim != left != size:  # the last of several is only begun
            return None
        strides.append(stride * (size // left))
        if size == left:
            at += 1
        else:
            old[at] = (size // left, stride)
    return replace(view, dims=dims, strides=tuple(strides))


def broadcast(view: View, shape: Shape, to: Shape) -> View:
    """A value of ``shape`` as the elements of a result of shape ``to``, aligned at the right as in numpy."""
    axes, wanted = row_axes(shape), row_axes(to)
    strides: list[int] = []
    for axis, place in enumerate(wanted):
        if place is None:
            continue
        own = axis - len(to) + len(shape)
        mine = axes[own] if own >= 0 else None
        strides.append(0 if mine is None or view.dims[mine] == 1 else view.strides[mine])
    return replace(view, dims=row_dims(to), strides=tuple(strides))
