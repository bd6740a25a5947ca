"""The graph IR: an SSA list of nodes over named values, with parameters that are named but never loaded.

A shape is a tuple of positive ints, symbolic dimension names (``"batch"``, ``"seq"`` before paging; ``"tokens"``,
``"samples"`` after it) and expressions of both. Everything is immutable: a pass builds a new ``Graph``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TypeAlias

from ferrum.graphs.dims import Dim
from ferrum.graphs.expressions.expression import Expr
from ferrum.graphs.expressions.sources import Constant, External, Floats, Source

Shape: TypeAlias = tuple[Dim, ...]
Attr: TypeAlias = bool | int | float | str | tuple[int, ...] | tuple[float, ...] | tuple[str, ...]

DTYPES = ("f32", "bf16", "f16", "i8", "i32", "i64", "u32", "u64", "bool", "q8")
STATE_KINDS = ("paged", "window", "slot", "fixed")


@dataclass(frozen=True, slots=True)
class Value:
    """One SSA value: an activation, a graph input or (as ``Param.value``) a parameter."""

    name: str
    dtype: str
    shape: Shape


@dataclass(frozen=True, slots=True)
class Param:
    """A weight by name, and where it comes from: an expression over checkpoint tensors, a constant, or what is bound later.

    ``shard`` is the axis along which machines that share the model cut it (None: each has all of it). ``format`` is the logical
    number format and ``layout`` the physical one; both are empty until the layout pass sets them.
    """

    value: Value
    source: Source
    shard: int | None = None
    format: str = ""
    layout: str = ""

    @property
    def name(self) -> str:
        return self.value.name

    @property
    def shape(self) -> tuple[int, ...]:
        """A parameter's dims are fixed."""
        return tuple(int(dim) for dim in self.value.shape)

    @property
    def data(self) -> Floats | None:
        """The numbers of a constant in the parameter's shape; None if it is none."""
        return self.source.values.reshape(self.shape) if isinstance(self.source, Constant) else None

    @property
    def weight(self) -> Expr | None:
        """How it is made of the checkpoint's tensors; None for a constant and for what is bound later."""
        return None if isinstance(self.source, Constant | External) else self.source


@dataclass(frozen=True, slots=True)
class State:
    """What sequences keep between steps. Its first version is the value of its name; a write makes the next one.

    ``kind`` is one of ``STATE_KINDS``: ``paged`` (a row for each token), ``window`` (the same, of which a query sees the last
    ``limit``), ``fixed`` (at most ``limit`` rows, of another axis than the tokens) or ``slot`` (one array for each sequence).
    ``shape`` is that of a row, and of the array.
    """

    name: str
    kind: str
    dtype: str
    shape: Shape
    limit: int = 0

    @property
    def value(self) -> Value:
        """The first version: a value whose dtype is the kind."""
        return Value(self.name, self.kind, self.shape)


@dataclass(frozen=True, slots=True)
class Region:
    """The body of a ``map`` or a ``scan``: nodes over its own inputs. It sees no value of the graph around it."""

    inputs: tuple[Value, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Node:
    """One operation. ``inputs`` are value or parameter names; ``origin`` is ``module.path file.py:line``."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[Value, ...]
    attrs: Mapping[str, Attr] = field(default_factory=lambda: MappingProxyType({}))
    origin: str = ""
    regions: tuple[Region, ...] = ()

    @property
    def output(self) -> Value:
        """The first output; of most operations the only one."""
        return self.outputs[0]


@dataclass(frozen=True, slots=True)
class Graph:
    """A whole model. ``nodes`` are in execution order; ``outputs`` are value names, among them the last version of each state."""

    name: str
    inputs: tuple[Value, ...]
    params: tuple[Param, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]
    states: tuple[State, ...] = ()

    def values(self) -> dict[str, Value]:
        """Every value by name: inputs, states, parameters, node outputs."""
        table = {v.name: v for v in self.inputs}
        table.update((s.name, s.value) for s in self.states)
        table.update((p.name, p.value) for p in self.params)
        table.update((v.name, v) for n in self.nodes for v in n.outputs)
        return table

    def producers(self) -> dict[str, Node]:
        return {v.name: n for n in self.nodes for v in n.outputs}

    def users(self) -> dict[str, tuple[Node, ...]]:
        """The nodes that read each name, in order; graph outputs do not count as users."""
        table: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                table.setdefault(name, []).append(node)
        return {name: tuple(nodes) for name, nodes in table.items()}

    def param(self, name: str) -> Param:
        return {p.name: p for p in self.params}[name]

    def with_nodes(self, nodes: Iterator[Node] | list[Node] | tuple[Node, ...]) -> Graph:
        return replace(self, nodes=tuple(nodes))
