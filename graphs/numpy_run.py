"""One execution of a graph in numpy: its values by name, where its weights come from, and which sequences it runs for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ferrum.graphs.dims import evaluate
from ferrum.graphs.ir import Node, Param, Shape, Value
from ferrum.graphs.step_states import StepStates

Array: TypeAlias = NDArray[Any]
Rows: TypeAlias = "NDArray[np.int64] | slice"


class Weights(Protocol):
    """Where parameters come from. Arrays are float32 (or float64), shaped as the parameter."""

    def get(self, param: Param) -> Array:
        """The whole parameter."""

    def rows(self, param: Param, ids: Rows) -> Array:
        """The rows ``ids`` (a slice with step 1, or a vector of indices) of the first axis."""


@dataclass
class KvState:
    """What ``paged_attention`` keeps: keys and values so far, ``[length, num_kv_heads, head_dim]`` by (layer, sequence); and the
    other states, once there are any."""

    keys: dict[tuple[int, int], Array] = field(default_factory=dict)
    values: dict[tuple[int, int], Array] = field(default_factory=dict)
    states: StepStates | None = None

    def extend(self, layer: int, seq: int, k: Array, v: Array) -> tuple[Array, Array]:
        at = (layer, seq)
        if at in self.keys:
            k, v = np.concatenate([self.keys[at], k]), np.concatenate([self.values[at], v])
        self.keys[at], self.values[at] = k, v
        return k, v


@dataclass(frozen=True)
class Sequences:
    """The sequences of a step. ``starts``: for each ragged axis where each sequence's rows begin, and where the last ones end.

    ``before`` is the number of tokens that each sequence had before the step.
    """

    ids: tuple[int, ...] = (0,)
    starts: Mapping[str, Sequence[int]] = field(default_factory=dict)
    before: tuple[int, ...] = (0,)

    def spans(self, axis: object) -> Iterator[tuple[int, int]]:
        """[start, end) of each sequence's rows along ``axis``."""
        starts = self.starts[str(axis)]
        return zip(starts[:-1], starts[1:], strict=True)

    def after(self) -> list[int]:
        """The number of tokens that each sequence has after the step."""
        new = [end - start for start, end in self.spans("tokens")] if "tokens" in self.starts else [0] * len(self.ids)
        return [n + more for n, more in zip(self.before, new, strict=True)]


@dataclass
class Run:
    """One execution: values by name, symbolic dims by name, and what the sequences keep.

    ``each_row``: products are computed row by row, so that a row's bits do not depend on the rows beside it.
    """

    weights: Weights
    dtype: type[np.floating[Any]]
    env: dict[str, Any]
    types: Mapping[str, Value]
    dims: dict[str, int]
    params: Mapping[str, Param]
    kv: KvState
    sequences: Sequences
    each_row: bool = False

    def get(self, name: str) -> Array:
        if name in self.env:
            return np.asarray(self.env[name])
        param = self.params[name]
        return self.weights.get(param).astype(self.numpy_dtype(param.value.dtype), copy=False)

    def all(self, node: Node) -> list[Array]:
        return [self.get(name) for name in node.inputs]

    def shape(self, shape: Shape) -> tuple[int, ...]:
        return tuple(evaluate(dim, self.dims) for dim in shape)

    def numpy_dtype(self, dtype: str) -> Any:
        return {"f32": self.dtype, "i32": np.int32, "i64": np.int64, "u32": np.uint32, "u64": np.uint64, "bool": np.bool_}[dtype]


Kernel: TypeAlias = Callable[[Run, Node], Any]


def softmax(x: Array, axis: int = -1) -> Array:
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return np.asarray(e / e.sum(axis=axis, keepdims=True))


def normalize(x: Array, weight: Array, eps: float) -> Array:
    return np.asarray(x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight)
