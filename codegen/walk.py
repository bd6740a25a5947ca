"""What the selection of every op shares: the walk over a laid-out graph, and the calls that it collects."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from ferrum.codegen.kernels.base import Kernel
from ferrum.codegen.kernels.linear.cpu import Blocking
from ferrum.codegen.kv import kept_by_layer
from ferrum.codegen.layouts import RowLayout, TiledLayout, parse_layout
from ferrum.codegen.layouts.activations import ActFormat, parse_act
from ferrum.codegen.target import GpuTarget, Target
from ferrum.codegen.views import View, row_dims, whole
from ferrum.graphs.dims import symbols
from ferrum.graphs.ir import Graph, Node, Shape
from ferrum.pack.launches import Rows
from ferrum.pack.step import INPUTS

_STEP = frozenset(array.name for array in INPUTS)

Phase = Literal["any", "decode", "mixed"]


@dataclass(frozen=True)
class Variant:
    """A kernel for a phase and a size class of its call's rows (``most`` 0: no upper bound)."""

    kernel: Kernel
    class_rows: Rows = "one"
    fewest: int = 0
    most: int = 0
    phase: Phase = "any"


@dataclass(frozen=True)
class Call:
    """A node on the device: the kernels of which each step takes those that fit. ``params`` are the weights they read.

    ``rows`` is "tokens" or "samples"; ``row_bytes`` of the output, which has no name where nothing is written to the arena.
    """

    variants: tuple[Variant, ...]
    inputs: tuple[str, ...]
    output: str
    params: tuple[str, ...]
    rows: Rows
    row_bytes: int
    layer: int = 0
    origin: str = ""

    @property
    def kernel(self) -> Kernel:
        """The kernel for the fewest rows: what a decoding sequence runs."""
        return self.variants[0].kernel


@dataclass
class Walk:
    """A laid-out graph on its way to calls. ``tuned`` and ``activations``: as the layout was made for.

    ``views``: values that are not stored but lie in the rows of others; ``places``: the stored values that have their elements in
    order, where somebody wanted that; ``given``: arrays of the step.
    """

    graph: Graph
    target: Target | GpuTarget
    kv_dtype: str
    tuned: Mapping[str, Blocking] = field(default_factory=dict)
    activations: str = "auto"

    def __post_init__(self) -> None:
        types = self.graph.values()
        self.shapes = {name: value.shape for name, value in types.items()}
        self.dtypes = {name: value.dtype for name, value in types.items()}
        self.params = {param.name for param in self.graph.params}
        self.given = {value.name for value in self.graph.inputs} & _STEP
        self.views: dict[str, View] = {}
        self.places: dict[str, str] = {}
        self.users = self.graph.users()
        self.acts = {n.output.name: parse_act(str(n.attrs["act"])) for n in self.graph.nodes if n.op == "quantize"}
        self.kept = kept_by_layer(self.graph)
        self.calls: list[Call] = []
        self.fused: set[str] = set()
        self.made: dict[object, str] = {}

    def add(
        self,
        node: Node,
        variants: Kernel | tuple[Variant, ...],
        inputs: tuple[str, ...],
        params: tuple[str, ...],
        row_bytes: int,
        output: str | None = None,
    ) -> None:
        """Add the call of a node; ``output``: the value that is written, where it is not the node's own."""
        made = (Variant(variants),) if isinstance(variants, Kernel) else variants
        layer = node.attrs.get("layer", 0)
        assert isinstance(layer, int)
        written = node.output.name if output is None else output
        read = tuple(self.places.get(name, name) for name in inputs)
        self.calls.append(Call(made, read, written, params, self.rows(node), row_bytes, layer, node.origin))

    def once(
        self,
        key: object,
        node: Node,
        kernel: Kernel,
        params: tuple[str, ...],
        row_bytes: int,
        output: str,
        inputs: tuple[str, ...] = (),
    ) -> str:
        """The output of a call that several nodes share, added when its ``key`` is new."""
        if key not in self.made:
            self.made[key] = output
            rows: Rows = self.rows(node) if inputs else "tokens"
            self.calls.append(Call((Variant(kernel),), inputs, output, params, rows, row_bytes, 0, node.origin))
        return self.made[key]

    def rows(self, node: Node) -> Rows:
        return rows_of(node.output.shape)

    def view(self, name: str) -> View:
        """How the elements of a value lie; a stored one has a row for each token even if it is the same for all."""
        found = self.views.get(name)
        return found or whole(name, self.dtypes[name], name not in self.params, row_dims(self.shapes[name]))

    def width(self, name: str) -> int:
        return int(self.shapes[name][-1])

    def layout(self, name: str) -> TiledLayout | RowLayout:
        """How a matrix lies in the weights."""
        param = self.graph.param(name)
        layout = parse_layout(param.layout, param.format, param.shape)
        assert isinstance(layout, (TiledLayout, RowLayout)), name
        return layout

    def row_bytes(self, act: ActFormat, k: int) -> int:
        """Bytes from one row of an activation to the next on the target."""
        return act.row_bytes(k) if isinstance(self.target, Target) else act.stride_bytes(k)

    def read_as(self, name: str) -> ActFormat:
        """The format of the rows that a product reads."""
        return self.acts.get(name, ActFormat("f32"))

    def stored(self, node: Node) -> tuple[ActFormat, str]:
        """(format, value) that the node's kernel writes: what the only product that reads it wants, else float32."""
        users = self.users.get(node.output.name, ())
        if len(users) == 1 and users[0].op == "quantize":
            self.fused.add(users[0].output.name)
            return parse_act(str(users[0].attrs["act"])), users[0].output.name
        return ActFormat("f32"), node.output.name


Choose = Callable[[Walk, Node], None]  # adds the calls of a node


def everywhere(choose: Choose) -> dict[str, Choose]:
    """One choice for all devices."""
    return {"cpu": choose, "cuda": choose, "metal": choose}


def apart(on_cpu: Choose, on_gpu: Choose) -> dict[str, Choose]:
    """One choice for CPUs and one for both kinds of GPU."""
    return {"cpu": on_cpu, "cuda": on_gpu, "metal": on_gpu}


def rows_of(shape: Shape) -> Rows:
    """What a value has rows of; what is the same for all tokens is stored for each of them."""
    return "samples" if any("samples" in symbols(dim) for dim in shape) else "tokens"


def number(node: Node, name: str, default: float = 0.0) -> float:
    """A numeric attribute."""
    value = node.attrs.get(name, default)
    assert isinstance(value, (int, float)), (node, name)
    return value
