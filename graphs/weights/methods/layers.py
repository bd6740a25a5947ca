"""What a method's file says of a checkpoint: the meaning of each weight, and which stored tensors are none of the model's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferrum.errors import FerrumError
from ferrum.graphs.expressions.evaluate import FLOATS, evaluate, whole
from ferrum.graphs.expressions.expression import Dequant, Expr, ExpressionFault, Map, Tensor, mapped, reshape, tensors
from ferrum.graphs.expressions.functions import FUNCTIONS
from ferrum.graphs.expressions.schemes import scheme_of
from ferrum.graphs.weights.checkpoint import Checkpoint

_PIECE = 1 << 20  # values of a scale that are looked at together
# Of activations and of the cache, by the last part of a name: they are rounded as the target does it.
_UNUSED_OF, _UNUSED_KINDS = ("input", "output", "activation", "k", "v", "q"), ("scale", "zero_point", "global_scale")
UNUSED = frozenset(f"{what}_{kind}" for what in _UNUSED_OF for kind in _UNUSED_KINDS)


@dataclass
class Layers:
    """``meanings`` by the names that the model has; ``aside`` and ``unused``: names that mean no weight, read or not."""

    checkpoint: Checkpoint
    meanings: dict[str, Expr] = field(default_factory=dict)
    aside: set[str] = field(default_factory=set)
    unused: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.unused.update(name for name in self.checkpoint.names() if name.rpartition(".")[2] in UNUSED)

    def ending(self, *suffixes: str) -> Iterator[tuple[str, str]]:
        """(what comes before it, the suffix) of the names with one of several."""
        for name in self.checkpoint.names():
            for suffix in suffixes:
                if name.endswith(suffix) and name not in self.unused:
                    yield name.removesuffix(suffix), suffix

    def dtype(self, name: str) -> str:
        return self.checkpoint.info(name)[0] if name in self.checkpoint else ""

    def shape(self, name: str) -> tuple[int, ...]:
        """Raises FerrumError (checkpoint-corrupt) if it is not there."""
        if name not in self.checkpoint:
            raise self.corrupt(f"{name} is missing")
        return self.checkpoint.info(name)[1]

    def tensor(self, name: str, axes: int = 0) -> Tensor:
        """As it is stored; floats of any kind are f32. ``axes``: as many it must have."""
        shape, dtype = self.shape(name), self.dtype(name)
        if axes and len(shape) != axes:
            raise self.corrupt(f"{name} is of shape {list(shape)}, expected {axes} sizes")
        return Tensor(name, shape, "f32" if dtype in FLOATS else dtype)

    def read(self, name: str, most: int) -> NDArray[Any]:
        """A small tensor, flat. Raises FerrumError (checkpoint-corrupt) for more than ``most`` numbers."""
        if math.prod(self.shape(name)) > most:
            raise self.corrupt(f"{name} is of shape {list(self.shape(name))}, expected at most {most} numbers")
        return self.checkpoint.read(name).reshape(-1)

    def number(self, name: str) -> float:
        """The one number that a tensor of floats is."""
        values = self.values(reshape_or_fault(self, self.tensor(name), (1,)))
        return float(next(values)[0])

    def scales(self, expr: Expr) -> Expr:
        """The same as float16 where that loses nothing: formats of packs hold such scales."""
        if isinstance(expr, Tensor) and self.dtype(expr.name) == "f16":
            return replace(expr, dtype="f16")
        if expr.type.dtype != "f32":
            names = ", ".join(tensor.name for tensor in tensors(expr))
            raise self.corrupt(f"{names} of {expr.type.dtype}, expected floats")
        with np.errstate(over="ignore", invalid="ignore"):
            held = all(np.array_equal(piece, piece.astype(np.float16)) for piece in self._distinct(expr))
        return mapped(expr, "f16") if held else expr

    def _distinct(self, expr: Expr) -> Iterator[NDArray[Any]]:
        """All numbers of an expression, those of bytes once each."""
        functions: list[Map] = []
        source = expr
        while isinstance(source, Map):
            functions.insert(0, source)
            source = source.source
        if not isinstance(source, Tensor) or self.checkpoint.read(source.name).itemsize > 1:
            yield from self.values(expr)
            return
        seen = np.zeros(256, np.bool_)
        for piece in self.values(source):
            seen[piece.view(np.uint8)] = True
        found: NDArray[Any] = np.flatnonzero(seen).astype(np.uint8)
        for step in functions:
            found = FUNCTIONS[step.function].apply(found, step.value)
        yield found

    def are(self, expr: Expr, value: int) -> bool:
        """Whether all numbers are one."""
        return all(bool((piece == value).all()) for piece in self.values(expr))

    def values(self, expr: Expr) -> Iterator[NDArray[Any]]:
        """All of an expression, a few rows at a time."""
        if not expr.type.shape:
            yield evaluate(expr, self.checkpoint, ())
            return
        rows, *rest = expr.type.shape
        step = max(1, _PIECE // max(1, math.prod(rest)))
        for row in range(0, rows, step):
            yield evaluate(expr, self.checkpoint, (slice(row, min(row + step, rows), 1), *whole(tuple(rest))))

    def dequant(self, name: str, scheme: str, size: int, *parts: Expr) -> Expr:
        """Raises FerrumError (checkpoint-corrupt) with the name for parts that do not belong together."""
        found = scheme_of(scheme, size)
        assert found is not None
        return self.typed(name, lambda: Dequant(found, parts))

    def typed(self, name: str, make: Callable[[], Expr]) -> Expr:
        """An expression with a type. Raises FerrumError (checkpoint-corrupt) with the name for one without."""
        try:
            made = make()
            made.type  # noqa: B018 - its faults
        except ExpressionFault as fault:
            raise self.corrupt(f"{name}: {fault}") from None
        return made

    def corrupt(self, what: str) -> FerrumError:
        return FerrumError("checkpoint-corrupt", what, self.checkpoint.folder.name, "check config.json and the weights")

    def unread(self, what: str) -> FerrumError:
        return FerrumError("format-unsupported", f"{what}, which is not read yet", self.checkpoint.folder.name, OTHERS)


OTHERS = "use another checkpoint of this model"


def reshape_or_fault(layers: Layers, tensor: Tensor, shape: tuple[int, ...]) -> Expr:
    """Raises FerrumError (checkpoint-corrupt) for a tensor of another number of elements."""
    return layers.typed(tensor.name, lambda: reshape(tensor, shape))


def size_of(k: int, groups: int, *known: int) -> int | None:
    """Values that share a scale where ``groups`` are along ``k``: 0 for all, or one of the sizes that the configuration has, or
    what divides it; None for a number that fits nothing."""
    if groups == 1:
        return 0
    if groups < 1 or groups > k:
        return None
    found = next((size for size in known if size > 0 and -(-k // size) == groups), 0)
    return found or (None if k % groups else k // groups)


@dataclass(frozen=True)
class Method:
    """``faults``: what of a configuration is not read. ``read`` raises FerrumError checkpoint-corrupt for tensors that do not
    belong together and format-unsupported for what is not read; the configuration has no faults then."""

    faults: Callable[[Mapping[str, Any]], list[str]]
    read: Callable[[Layers, Mapping[str, Any]], None]
