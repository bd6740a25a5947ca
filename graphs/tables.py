"""Position tables: values that depend on positions and constants only (masks, rope's cos and sin), evaluated at chosen points.

How a model spells a mask or a rotation differs from model to model; what it computes does not. So these are recognized by
their values: a table is evaluated in float64 at chosen coordinates, without ever being materialized, and compared with what
the fused operation would compute there. The points sit around every boundary that the table's own constants can make.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ferrum.graphs.dims import evaluate
from ferrum.graphs.ir import Node, Param, Shape, Value
from ferrum.graphs.op_spec import axes, integer

Points: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]

MAX_ROW = 1 << 16  # keys of a query that are looked at one by one
MAX_INNER = 256  # contracted elements of a product inside a table

ELEMENTWISE: Mapping[str, Callable[..., Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "neg": np.negative,
    "reciprocal": np.reciprocal,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "exp": np.exp,
    "cos": np.cos,
    "sin": np.sin,
    "log": np.log,
    "pow": np.power,
    "floor": np.floor,
    "abs": np.abs,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "floor_divide": np.floor_divide,
    "remainder": np.mod,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "eq": np.equal,
    "ne": np.not_equal,
    "and": np.logical_and,
    "or": np.logical_or,
    "not": np.logical_not,
    "where": np.where,
}
SCALAR: Mapping[str, Callable[[Floats, float], Floats]] = {
    "add_scalar": lambda x, v: x + v,
    "mul_scalar": lambda x, v: x * v,
    "pow_scalar": lambda x, v: x**v,
}


class NotATable(Exception):
    """The value holds an op that cannot be evaluated at single points."""


class Tables:
    """Evaluates tables of one graph. ``dims`` gives the symbolic dims a size; points must lie inside of it."""

    def __init__(
        self, nodes: Mapping[str, Node], params: Mapping[str, Param], types: Mapping[str, Value], dims: Mapping[str, int]
    ) -> None:
        self.nodes = nodes
        self.params = params
        self.types = types
        self.dims = dims

    def shape(self, shape: Shape) -> tuple[int, ...]:
        return tuple(evaluate(dim, self.dims) for dim in shape)

    def at(self, name: str, points: tuple[Points, ...]) -> Floats:
        """The values at ``points`` (one index array per axis), where the points index any shape that ``name`` broadcasts to."""
        shape = self.shape(self.types[name].shape)
        if len(points) < len(shape):
            raise NotATable(name)
        points = points[len(points) - len(shape) :]
        points = tuple(p if size != 1 else np.zeros_like(p) for p, size in zip(points, shape, strict=True))
        with np.errstate(all="ignore"):
            return self.evaluate(name, points)

    def evaluate(self, name: str, points: tuple[Points, ...]) -> Floats:
        node = self.nodes.get(name)
        if node is None:
            return self.parameter(name, points)
        if node.op in ELEMENTWISE:
            values = (self.at(i, points) if points else self.at(i, ()) for i in node.inputs)
            return np.asarray(ELEMENTWISE[node.op](*values)).astype(np.float64)
        if node.op in SCALAR:
            value = node.attrs["value"]
            assert isinstance(value, float)
            return SCALAR[node.op](self.at(node.inputs[0], points), value)
        if node.op in STRUCTURE:
            return STRUCTURE[node.op](self, node, points)
        raise NotATable(node.op)

    def parameter(self, name: str, points: tuple[Points, ...]) -> Floats:
        param = self.params.get(name)
        if param is None or param.data is None:
            raise NotATable(name)
        return np.asarray(param.data[points])


def _full(t: Tables, node: Node, points: tuple[Points, ...]) -> Floats:
    value: Any = node.attrs["value"]
    return np.full(points[0].shape if points else (), value, np.float64)


def _iota(t: Tables, node: Node, points: tuple[Points, ...]) -> Floats:
    start, step = integer(node.attrs, "start"), integer(node.attrs, "step")
    return (start + step * points[0]).astype(np.float64)


def _cast(t: Tables, node: Node, points: tuple[Points, ...]) -> Floats:
    x = t.at(node.inputs[0], points)
    return x if node.output.dtype == "f32" else (x != 0).astype(np.float64) if node.output.dtype == "bool" else np.trunc(x)


def _triangle(keep: Callable[[Points, int], Any]) -> Callable[[Tables, Node, tuple[Points, ...]], Floats]:
    def evaluate(t: Tables, node: Node, points: tuple[Points, ...]) -> Floats:
        diagonal = integer(node.attrs, "diagonal")
        return np.where(keep(points[-1] - points[-2], diagonal), t.at(node.inputs[0], points), 0.0)

    return evaluate


def _reshape(t: Tables, node: Node, points: tuple[Points, ...]) -> Floats:
    old, new = t.shape(t.types[node.inputs[0]].shape), t.shape(node.output.shape)
    if not points:
        return t.at(node.inputs[0], tuple(np.zeros((), np.int64) for _ in old))
    flat = np.ravel_multi_index(points, new)
    return t.at(node.inputs[0], tuple(np.asarray(p) for p in np.unravel_index(flat, old)) if old else ())


def _expand(t: Tables, node: Node, points: tuple[Points, ...]) -> Floats:
    x = t.at(node.inputs[0], points)
    return np.broadcast_to(x, points[0].shape) if points else x


def _permute(t: Tables, node: Node, points: tuple[Points, ...]) -> Floats:
    order = axes(node.attrs, "order")
    return t.at(node.inputs[0], tuple(points[order.index(i)] for i in range(len(order))))


def _slice(t: Tables, node: Node, points: tuple[Points, ...]) -> Floats:
    axis, start = integer(node.attrs, "axis"), integer(node.attrs, "start")
    return t.at(node.inputs[0], tuple(p + start if i == axis else p for i, p in enumerate(points)))


def _repeat(t: Tables, node: Node, points: tuple[Points, ...]) -> Floats:
    axis, times = integer(node.attrs, "axis"), integer(node.attrs, "times")
    return t.at(node.inputs[0], tuple(p // times if i == axis else p for i, p in enumerate(points)))


def _cat(t: Tables, node: Node, points: tuple[Points, ...]) -> Floats:
    axis = integer(node.attrs, "axis")
    out, start = np.zeros(points[axis].shape), 0
    for name in node.inputs:
        size = t.shape(t.types[name].shape)[axis]
        here = (points[axis] >= start) & (points[axis] < start + size)
        local = tuple(np.where(here, p - start, 0) if i == axis else p for i, p in enumerate(points))
        out = np.where(here, t.at(name, local), out)
        start += size
    return out


def _take(t: Tables, node: Node, points: tuple[Points, ...]) -> Floats:
    axis = integer(node.attrs, "axis")
    x, at = (t.types[name].shape for name in node.inputs)
    place = t.at(node.inputs[1], points[axis : axis + len(at)]).astype(np.int64)
    return t.at(node.inputs[0], (*points[:axis], within(place, t.shape(x)[axis]), *points[axis + len(at) :]))


def _gather(t: Tables, node: Node, points: tuple[Points, ...]) -> Floats:
    axis = integer(node.attrs, "axis")
    place = within(t.at(node.inputs[1], points).astype(np.int64), t.shape(t.types[node.inputs[0]].shape)[axis])
    return t.at(node.inputs[0], tuple(place if i == axis else p for i, p in enumerate(points)))


def within(places: Points, size: int) -> Points:
    """Raises NotATable for places that the axis does not have."""
    if places.size and (places.min() < 0 or places.max() >= size):
        raise NotATable("places outside of an axis")
    return places


def _matmul(t: Tables, node: Node, points: tuple[Points, ...]) -> Floats:
    a, b = node.inputs
    inner = t.shape(t.types[a].shape)[-1]
    if inner > MAX_INNER:
        raise NotATable("matmul")
    out = np.zeros(points[0].shape)
    for k in range(inner):
        at = np.full_like(points[0], k)
        out = out + t.at(a, (*points[:-2], points[-2], at)) * t.at(b, (*points[:-2], at, points[-1]))
    return out


def _sum(t: Tables, node: Node, points: tuple[Points, ...]) -> Floats:
    """Of a constant: a size that is counted."""
    source = t.nodes.get(node.inputs[0])
    if source is None or source.op != "full":
        raise NotATable(node.op)
    count = t.shape(source.output.shape)[integer(node.attrs, "axis")]
    return _full(t, source, points) * count


STRUCTURE: Mapping[str, Callable[[Tables, Node, tuple[Points, ...]], Floats]] = {
    "full": _full,
    "sum": _sum,
    "iota": _iota,
    "cast": _cast,
    "tril": _triangle(lambda offset, diagonal: offset <= diagonal),
    "triu": _triangle(lambda offset, diagonal: offset >= diagonal),
    "reshape": _reshape,
    "expand": _expand,
    "permute": _permute,
    "slice": _slice,
    "repeat": _repeat,
    "cat": _cat,
    "matmul": _matmul,
    "take": _take,
    "gather": _gather,
}


def cone(name: str, nodes: Mapping[str, Node]) -> Iterator[Node]:
    """Every node that ``name`` is computed by, once."""
    seen: set[str] = set()
    todo = [name]
    while todo:
        at = todo.pop()
        node = nodes.get(at)
        if node is None or at in seen:
            continue
        seen.add(at)
        todo.extend(node.inputs)
        yield node


def constants(name: str, nodes: Mapping[str, Node]) -> set[int]:
    """Every whole number that ``name`` is computed with; the boundaries of a mask are sums of them."""
    found: set[int] = set()
    for node in cone(name, nodes):
        for key in ("value", "diagonal", "start", "step"):
            value = node.attrs.get(key)
            if isinstance(value, int | float) and abs(value) < 1 << 24 and value == int(value):
                found.add(abs(int(value)))
    return found


MASKED = -1e4  # what a float mask adds to a forbidden score is at most this
FORBIDDEN = -1e9  # beside a bias that falls with the distance

Slopes: TypeAlias = tuple[float, ...]


@dataclass(frozen=True)
class Sees:
    """Keys that a query sees: less than ``window`` away (0: any), if ``causal`` up to itself. ``slopes`` of heads; none for 0."""

    window: int = 0
    slopes: Slopes = ()
    causal: bool = True


def score_table(name: str, nodes: Mapping[str, Node], params: Mapping[str, Param], types: Mapping[str, Value]) -> Sees | None:
    """What a table ``[.., heads, seq, seq]`` of scores means.

    A float table adds a large negative number where it forbids, elsewhere slope * (key - query), with no slopes 0; what it adds
    to all keys of a query changes no weight. None: the table is something else.
    """
    numbers, rank = sorted(constants(name, nodes)), len(types[name].shape)
    if len(numbers) > 64 or rank < 2:
        return None
    windows = {0, *(n + d for n in numbers for d in (-1, 0, 1) if n + d > 0)}
    size = stored_length(name, nodes, types) or 2 * max(windows) + 8
    counts = any(node.op == "sum" for node in cone(name, nodes))  # the table knows how many tokens there are
    found = [
        _meaning(Tables(nodes, params, types, {"batch": 2, "seq": n, "tokens": 2 * n}), name, windows, numbers)
        for n in ((size, max(1, size // 2)) if counts else (size,))
    ]
    return found[0] if all(one == found[0] for one in found) else None


def _meaning(tables: Tables, name: str, windows: set[int], numbers: list[int]) -> Sees | None:
    """``score_table`` for as many tokens as ``tables`` says."""
    size, shape = tables.dims["seq"], tables.shape(tables.types[name].shape)
    rank = len(shape)
    if shape[-2:] != (size, size):
        return None
    heads = np.arange(shape[-3] if rank > 2 else 1)[:, None]
    try:
        windows = windows | _last_window(tables, name, size)
        query, key = _places(windows, numbers, size)
        wide = tuple(np.broadcast_to(p, (len(heads), len(query))) for p in (heads, query, key))
        values = [_scores(tables, name, wide, other) for other in ((0, 1) if rank > 3 else (0,))]
        own = _scores(tables, name, (wide[0], wide[1], wide[1]), 0)
    except NotATable:
        return None
    if any(not np.array_equal(v, values[0]) for v in values[1:]):
        return None
    binary = tables.types[name].dtype == "bool"
    allowed, slopes = (values[0] != 0, ()) if binary else _linear(values[0] - own, values[0], query, key)
    if allowed is None:
        return None
    fits = [w for w in sorted(windows) if (allowed == _causal(query - key, w)).all()]
    if fits:
        return Sees(fits[0], slopes)
    level = binary or bool((values[0] == own)[allowed].all())
    fits = [w for w in sorted(windows) if level and (allowed == _near(query - key, w)).all()]
    return Sees(fits[0], causal=False) if fits else None


def stored_length(name: str, nodes: Mapping[str, Node], types: Mapping[str, Value]) -> int:
    """Places for which ``name`` is known, where it is read from a table of a fixed size; 0: it is computed for any."""
    sizes = [n for n in cone(name, nodes) if n.op in ("take", "gather")]
    found = [types[n.inputs[0]].shape[integer(n.attrs, "axis")] for n in sizes]
    return min((n for n in found if isinstance(n, int)), default=0)


def _last_window(tables: Tables, name: str, size: int) -> set[int]:
    """How many keys the last query sees without a gap, if not all: a mask that was stored says it nowhere else."""
    if size > MAX_ROW:
        return set()
    key = np.arange(size)[None]
    values = _scores(tables, name, (np.zeros_like(key), np.full_like(key, size - 1), key), 0)[0]
    sees = (values != 0 if tables.types[name].dtype == "bool" else values > FORBIDDEN)[::-1]
    return set() if sees.all() else {int(sees.argmin())} - {0}


def _places(windows: set[int], numbers: list[int], size: int) -> tuple[Points, Points]:
    """Pairs of a query and a key around every boundary, and some drawn ones."""
    edges = sorted(
        {e + d for e in windows for d in range(-3, 4)} | {-e + d for e in windows for d in range(-3, 4)} | set(numbers)
    )
    keys = np.array([0, 1, size // 3, size // 2, size - 1])
    query = (keys[None, :] + np.array(edges)[:, None]).ravel()
    key = np.broadcast_to(keys, (len(edges), len(keys))).ravel()
    random = np.random.default_rng(0).integers(0, size, (2, 512))
    query, key = np.concatenate([query, random[0]]), np.concatenate([key, random[1]])
    inside = (query >= 0) & (query < size)
    return query[inside], key[inside]


def _scores(tables: Tables, name: str, places: tuple[Any, ...], other: int) -> Floats:
    """The table's values for (head, query, key); ``other``: the place on the axes before."""
    shape = tables.shape(tables.types[name].shape)
    before = tuple(np.full_like(places[0], min(other, n - 1)) for n in shape[:-3])
    return tables.at(name, (*before, *places)[-len(shape) :])


def _linear(against_own: Floats, values: Floats, query: Points, key: Points) -> tuple[Any, Slopes]:
    """(where a float table allows, slopes), or (None, ()) of other values. ``against_own``: the values less each query's own."""
    forbidden = values <= (MASKED if (np.isin(values, (0.0,)) | (values <= MASKED)).all() else FORBIDDEN)
    inside = ~forbidden & (key <= query)
    distance = np.broadcast_to(key - query, values.shape)
    near = np.where(inside & (distance < 0), -distance, np.iinfo(np.int64).max).argmin(axis=1)
    rows = np.arange(len(values))
    with np.errstate(all="ignore"):
        slopes = np.where(distance[rows, near] < 0, against_own[rows, near] / distance[rows, near], 0.0)
    if not np.isfinite(slopes).all() or not np.allclose(
        against_own[inside], (slopes[:, None] * distance)[inside], rtol=1e-5, atol=1e-6
    ):
        return None, ()
    return ~forbidden, tuple(float(s) for s in slopes) if slopes.any() else ()


def _causal(distance: Points, window: int) -> Any:
    return (distance >= 0) & _near(distance, window)


def _near(distance: Points, window: int) -> Any:
    return (np.abs(distance) < window) | (window == 0)


LONGEST, PLACES = 8192, (0, 1, 2, 3, 17, 500, 1023, 4099, 8190)


def rotation(
    cos: str,
    sin: str,
    shape: Shape,
    seq_axis: int,
    nodes: Mapping[str, Node],
    params: Mapping[str, Param],
    types: Mapping[str, Value],
) -> tuple[tuple[float, ...], float] | None:
    """The rope that the tables ``cos`` and ``sin`` spell when they multiply a value of ``shape``.

    Returns (inv_freq of the first half of the last axis, in radians per position and rounded to f32; the factor on cos and
    sin). The second half must repeat the first when the tables are as wide as ``shape``. None: no rotation by positions.
    """
    width = shape[-1]
    if not isinstance(width, int):
        return None
    stored = min(stored_length(name, nodes, types) for name in (cos, sin))
    for size in (LONGEST, *((stored,) if 2 < stored < LONGEST else ())):
        tables = Tables(nodes, params, types, {"batch": 2, "seq": size, "tokens": 2 * size})
        positions = np.array([place for place in PLACES if place < size])
        try:
            values = [_turns(tables, name, shape, seq_axis, positions) for name in (cos, sin)]
        except NotATable:
            continue
        known = [v for v in values if v is not None]
        return _turn(known[0], known[1], positions, rounded=size == stored) if len(known) == 2 else None
    return None


def _turns(tables: Tables, name: str, shape: Shape, seq_axis: int, positions: Points) -> Floats | None:
    """A table's values [positions, width]; None if they depend on more than positions."""
    sizes = tables.shape(shape)
    at, column = (g.ravel() for g in np.meshgrid(positions, np.arange(sizes[-1]), indexing="ij"))
    values = []
    for other in (0, 1):
        points = tuple(
            at if axis == seq_axis else column if axis == len(sizes) - 1 else np.full_like(at, min(other, size - 1))
            for axis, size in enumerate(sizes)
        )
        values.append(tables.at(name, points).reshape(len(positions), sizes[-1]))
    return values[0] if np.array_equal(values[0], values[1]) else None


def _turn(c: Floats, s: Floats, positions: Points, rounded: bool) -> tuple[tuple[float, ...], float] | None:
    """``rotation`` by its cosines and sines; ``rounded``: they were stored as float32, of angles in float32."""
    scale = float(c[0, 0])
    if not np.isfinite(c).all() or not np.isfinite(s).all() or scale <= 0:
        return None
    freq = np.arctan2(s[1], c[1])
    if rounded:  # the farther, the more exact
        for place, sine, cosine in zip(positions[2:], s[2:], c[2:], strict=True):
            part = np.arctan2(sine, cosine)
            freq = (part + 2 * np.pi * np.round((freq * place - part) / (2 * np.pi))) / place
    angle = positions[:, None] * freq
    near = scale * (1e-6 + (2e-7 * np.abs(angle) if rounded else 0.0))
    for found, wanted in ((c, scale * np.cos(angle)), (s, scale * np.sin(angle))):
        if (np.abs(found - wanted) > near + 1e-5 * np.abs(wanted)).any():
            return None
    return tuple(float(np.float32(f)) for f in freq), scale
