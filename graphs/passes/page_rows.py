"""Values [batch, seq, ..] → rows of tokens, whatever op computes them.

The sizes say it all: the axis ``batch`` goes, ``seq`` (and batch times seq) becomes the axis of a step's tokens. That is right
for every op that computes each token's elements from that token's alone, and an op's axes show whether it does: what runs along
the axis of tokens, or has that axis twice, mixes tokens and is no matter of rows. An op's record says how it uses its axes, so
one more op of a known kind is nothing here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ferrum.graphs.dims import Dim, substitute, symbols, terms_of
from ferrum.graphs.expressions.expression import permute
from ferrum.graphs.ir import Node, Shape
from ferrum.graphs.op_spec import OpFault, axes, integer
from ferrum.graphs.ops import OPS
from ferrum.graphs.passes.fold_weights import derived, weight
from ferrum.graphs.rewrite import Scope

POINTWISE, ALONG, LAST = (
    frozenset(name for name, spec in OPS.items() if spec.uses == uses) for uses in ("pointwise", "along", "last")
)


class NotPaged(Exception):
    def __init__(self, what: str, nearest: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.nearest = nearest


def has_tokens(dim: Dim) -> bool:
    return bool(symbols(dim) & {"seq", "tokens", "samples"})


def mixes(dim: Dim) -> bool:
    """Whether an axis of this size holds several tokens or sequences."""
    return bool(symbols(dim) & {"batch", "seq", "tokens", "samples"})


def batch_axis(shape: Shape) -> int | None:
    return shape.index("batch") if "batch" in shape else None


def row_axis(shape: Shape) -> int | None:
    """The axis of tokens, or of a fixed number of elements for each. Raises NotPaged when there are several."""
    found = [axis for axis, dim in enumerate(shape) if has_tokens(dim)]
    if len(found) > 1:
        raise NotPaged(f"a value of shape {[str(d) for d in shape]}, which pairs tokens")
    return found[0] if found else None


def without(shape: Sequence[Any], axis: int | None) -> tuple[Any, ...]:
    return tuple(item for i, item in enumerate(shape) if i != axis)


def repeats(dim: Dim) -> int:
    """How many elements an axis has for each token. Raises NotPaged when that depends on how many tokens there are."""
    terms = terms_of(substitute(dim, {"batch": 1}))
    if len(terms) != 1 or len(next(iter(terms))) != 1 or not isinstance(next(iter(terms))[0], str):
        raise NotPaged(f"an axis of {dim} elements")
    return next(iter(terms.values()))


@dataclass
class Rows:
    """Emits nodes on rows into ``out``. ``names``: the values' names on rows.

    ``inner``: of an axis of several elements for each token, how many of a token's lie side by side.
    """

    out: Scope
    types: Mapping[str, Any]
    names: dict[str, str] = field(default_factory=dict)
    inner: dict[str, int] = field(default_factory=dict)

    def page(self, node: Node) -> tuple[str, ...]:
        """The names of the outputs of ``node`` on rows. Raises NotPaged."""
        emit = KINDS.get(node.op)
        if emit is None:
            shapes = [*map(self.shape, node.inputs), *(value.shape for value in node.outputs)]
            if any(mixes(dim) for shape in shapes for dim in shape):
                raise NotPaged(f"{node.op} over values of several tokens")
            emit = Rows.constant
        for value in node.outputs:
            row_axis(value.shape)
        try:
            made = emit(self, node)
        except OpFault as fault:
            raise NotPaged(f"{node.op} of values that differ by position: {fault}") from fault
        known = [self.inner[name] for name in map(self.name, node.inputs) if name in self.inner]
        for name in made if known else ():
            self.inner.setdefault(name, known[0])
        return made

    def name(self, name: str) -> str:
        return self.names.get(name, name)

    def shape(self, name: str) -> Shape:
        """Before paging."""
        found: Shape = self.types[name].shape
        return found

    def size(self, dim: Dim) -> Dim:
        if has_tokens(dim):
            repeats(dim)
        return substitute(dim, {"batch": 1, "seq": "tokens", "tokens": "tokens"})

    def paged(self, shape: Shape) -> Shape:
        return tuple(self.size(dim) for dim in shape if dim != "batch")

    def add(self, node: Node, inputs: Sequence[str], shape: Shape | None = None, **changed: Any) -> tuple[str, ...]:
        attrs = {**node.attrs, **changed}
        dtype = node.output.dtype if shape is not None or node.op == "cast" else ""
        return self.out.add(node.op, tuple(inputs), shape, dtype, attrs, node.regions)

    def integer(self, name: str, node: Node) -> str:
        """Positions are i32; what was computed of places in another integer type stays so."""
        wanted = self.types[name].dtype
        mapped = self.name(name)
        return self.out.emit("cast", mapped, dtype=wanted) if self.out.types[mapped].dtype != wanted else mapped

    def aligned(self, node: Node) -> list[str]:
        """The inputs of a broadcast: an axis of 1 in the place of the batch goes as well."""
        shape = node.output.shape
        batch, out = batch_axis(shape), []
        for name in node.inputs:
            own, mapped = self.shape(name), self.integer(name, node)
            at = -1 if batch is None else len(own) - len(shape) + batch
            if at >= 0 and own[at] == 1:
                mapped = self.out.emit("reshape", mapped, shape=without(self.out.shape(mapped), at))
            out.append(mapped)
        return out

    def pointwise(self, node: Node) -> tuple[str, ...]:
        return self.add(node, self.aligned(node))

    def expand(self, node: Node) -> tuple[str, ...]:
        (name,), shape = self.aligned(node), self.paged(node.output.shape)
        return (name,) if self.out.shape(name) == shape else self.add(node, [name], shape)

    def constant(self, node: Node) -> tuple[str, ...]:
        """No tokens are in it: it is what it was."""
        return self.add(node, [self.name(name) for name in node.inputs])

    def repeat(self, node: Node) -> tuple[str, ...]:
        """Copies of each element lie side by side, so that those of a token do."""
        shape = self.shape(node.inputs[0])
        axis = integer(node.attrs, "axis")
        if not has_tokens(shape[axis]):
            return self.along(node)
        name = self.name(node.inputs[0])
        (made,) = self.add(node, [name], axis=self.moved(axis, batch_axis(shape)))
        own = self.inner.get(name, repeats(shape[axis])) if repeats(shape[axis]) > 1 else 1
        self.inner[made] = own * integer(node.attrs, "times")
        return (made,)

    def full(self, node: Node) -> tuple[str, ...]:
        return self.add(node, (), self.paged(node.output.shape))

    def iota(self, node: Node) -> tuple[str, ...]:
        if not has_tokens(node.output.shape[0]):
            return self.add(node, (), node.output.shape)
        start, step = integer(node.attrs, "start"), integer(node.attrs, "step")
        if node.output.shape != ("seq",):
            raise NotPaged(f"places along an axis of {node.output.shape[0]}")
        if (start, step) == (0, 1):
            return ("positions",)
        places = self.out.emit("cast", "positions", dtype=node.output.dtype)
        return (self.out.emit("add_scalar", self.out.emit("mul_scalar", places, value=float(step)), value=float(start)),)

    def permute(self, node: Node) -> tuple[str, ...]:
        batch = batch_axis(self.shape(node.inputs[0]))
        order = [axis for axis in axes(node.attrs, "order") if axis != batch]
        moved = tuple(self.moved(axis, batch) for axis in order)
        name = self.name(node.inputs[0])
        return (name,) if moved == tuple(range(len(moved))) else self.add(node, [name], order=moved)

    @staticmethod
    def moved(axis: int, batch: int | None) -> int:
        return axis - (batch is not None and axis > batch)

    def reshape(self, node: Node) -> tuple[str, ...]:
        """Elements of a token stay together: as many lie side by side before as after."""
        name, shape = self.name(node.inputs[0]), self.paged(node.output.shape)
        before, after = row_axis(self.out.shape(name)), row_axis(shape)
        if (before is None) != (after is None):
            raise NotPaged(f"{node.op} of shape {[str(d) for d in node.output.shape]}")
        if self.out.shape(name) == shape:
            return (name,)
        (made,) = self.add(node, [name], shape)
        if before is not None and after is not None:
            side = self.side(name, before)
            rest = self.count(shape[after + 1 :])
            count = repeats(shape[after])
            if side % rest or count % (side // rest):
                raise NotPaged(f"a reshape of tokens to {[str(d) for d in node.output.shape]}")
            if count > 1:
                self.inner[made] = side // rest
            elif side != rest:
                raise NotPaged(f"a reshape of tokens to {[str(d) for d in node.output.shape]}")
        return (made,)

    def side(self, name: str, axis: int) -> int:
        """How many elements of one token lie side by side."""
        shape = self.out.shape(name)
        own = self.inner.get(name, repeats(shape[axis])) if repeats(shape[axis]) > 1 else 1
        return own * self.count(shape[axis + 1 :])

    @staticmethod
    def count(shape: Shape) -> int:
        if not all(isinstance(dim, int) for dim in shape):
            raise NotPaged(f"an axis of {shape} elements")
        return math.prod(int(dim) for dim in shape)

    def along(self, node: Node) -> tuple[str, ...]:
        return self.on_axis(node, "axis")

    def on_axis(self, node: Node, key: str) -> tuple[str, ...]:
        shape = self.shape(node.inputs[0])
        axis, batch = integer(node.attrs, key), batch_axis(shape)
        read = node.inputs[:1] if node.op == "gather" else node.inputs  # where a token looks is its own matter
        if mixed := [dim for name in read if mixes(dim := self.shape(name)[axis])]:
            raise NotPaged(f"{node.op} along the axis of {mixed[0]}")
        moved: dict[str, Any] = {key: self.moved(axis, batch)}
        return self.add(node, [self.integer(name, node) for name in node.inputs], **moved)

    def last(self, node: Node) -> tuple[str, ...]:
        """Rows, and for each the last axis."""
        shape = self.shape(node.inputs[0])
        if node.op != "embedding" and (not shape or mixes(shape[-1])):
            raise NotPaged(f"{node.op} along the axis of {shape[-1] if shape else 1}")
        return self.add(node, [self.name(name) for name in node.inputs])

    def linear(self, node: Node) -> tuple[str, ...]:
        """A layer on several rows of each token (on heads, say) is a product of arrays: its kernels know one row a token."""
        x, matrix, *bias = node.inputs
        source = weight(self.out, matrix)
        rows = math.prod(dim for dim in node.output.shape[:-1] if isinstance(dim, int))
        if rows <= 1 or source is None or node.attrs["activation"] or node.attrs["has_residual"]:
            return self.last(node)
        self.last(node)  # what it refuses
        product = self.out.emit("matmul", self.name(x), derived(self.out, matrix, permute(source, (1, 0))))
        return (self.out.emit("add", product, self.name(bias[0])) if bias else product,)

    def take(self, node: Node) -> tuple[str, ...]:
        shape = self.shape(node.inputs[0])
        axis, batch = integer(node.attrs, "axis"), batch_axis(shape)
        if mixes(shape[axis]) or (batch is not None and "batch" in self.shape(node.inputs[1])):
            raise NotPaged(f"{node.op} along the axis of {shape[axis]}")
        return self.add(node, [self.name(name) for name in node.inputs], axis=self.moved(axis, batch))

    def matmul(self, node: Node) -> tuple[str, ...]:
        x, y = (self.shape(name) for name in node.inputs)
        if mixes(x[-1]) or "batch" in (*x[-2:], *y[-2:]):
            raise NotPaged(f"{node.op} along the axis of {x[-1]}")
        return self.add(node, self.aligned(node))

    def conv(self, node: Node) -> tuple[str, ...]:
        """Tokens may be what it calls a batch."""
        shape = self.shape(node.inputs[0])
        if shape[0] == "batch" or any(map(mixes, shape[1:])):
            raise NotPaged(f"{node.op} along the axis of {shape[-1]}")
        return self.add(node, [self.name(name) for name in node.inputs])

    def pad(self, node: Node) -> tuple[str, ...]:
        shape = self.shape(node.inputs[0])
        widths = {key: axes(node.attrs, key) for key in ("before", "after")}
        fixed = [axis for axis, dim in enumerate(shape) if has_tokens(dim) or dim == "batch"]
        if any(width[axis] for width in widths.values() for axis in fixed):
            raise NotPaged("padding of the tokens")
        cut = {key: without(width, batch_axis(shape)) for key, width in widths.items()}
        return self.add(node, [self.name(name) for name in node.inputs], **cut)

    def rope(self, node: Node) -> tuple[str, ...]:
        shape = self.shape(node.inputs[0])
        batch, axis = batch_axis(shape), integer(node.attrs, "seq_axis")
        names = [self.name(name) for name in node.inputs]
        wanted = self.paged(self.types[node.inputs[1]].shape)
        if batch is not None and self.out.shape(names[1]) not in (wanted, ("tokens",)):
            raise NotPaged("a rope by positions of another form", "one position for each token")
        return self.add(node, names, seq_axis=self.moved(axis, batch))


KINDS: Mapping[str, Callable[[Rows, Node], tuple[str, ...]]] = {
    **dict.fromkeys(sorted(POINTWISE), Rows.pointwise),
    **dict.fromkeys(sorted(ALONG), Rows.along),
    **dict.fromkeys(sorted(LAST), Rows.last),
    "linear": Rows.linear,
    "pool": Rows.last,
    "full": Rows.full,
    "iota": Rows.iota,
    "reshape": Rows.reshape,
    "expand": Rows.expand,
    "permute": Rows.permute,
    "repeat": Rows.repeat,
    "take": Rows.take,
    "matmul": Rows.matmul,
    "conv": Rows.conv,
    "pad": Rows.pad,
    "rope": Rows.rope,
}
