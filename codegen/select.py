"""Which kernel computes which node on a target, with which formats and register blocks, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ferrum.codegen.formats import ActFormat, act_for, parse_act
from ferrum.codegen.kernels.base import Kernel
from ferrum.codegen.kernels.embedding import Embedding
from ferrum.codegen.kernels.gather_rows import GatherRows
from ferrum.codegen.kernels.layer_norm import LayerNorm
from ferrum.codegen.kernels.linear import Blocking, Linear
from ferrum.codegen.kernels.paged_attention import PagedAttention
from ferrum.codegen.kernels.quantize import Quantize
from ferrum.codegen.kernels.rms_norm import RmsNorm
from ferrum.codegen.kernels.rope_table import RopeTable
from ferrum.codegen.layouts import Format, TiledLayout, fit_group, parse_format, parse_tiled
from ferrum.codegen.target import Target
from ferrum.codegen.tuned import RECORDED
from ferrum.graphs.ir import Graph, Node
from ferrum.graphs.passes.layout import EMBEDDING, HEAD, Choice


@dataclass(frozen=True)
class Call:
    """One launch: a kernel on values. ``params`` are the weights it reads; ``rows`` is "tokens" or "samples"."""

    kernel: Kernel
    inputs: tuple[str, ...]
    output: str
    params: tuple[str, ...]
    rows: str
    row_bytes: int
    layer: int = 0
    origin: str = ""


def blocking(target: Target, fmt: Format, tuned: Mapping[str, Blocking]) -> Blocking:
    """What was tuned for this compile, else what is recorded for the target, else as many sums as fit beside the operands.

    Integer sums are scaled and added up in memory. bfloat16 weights that are widened are shared by more rows.
    """
    found = tuned.get(fmt.name) or RECORDED.get(target.name, {}).get(fmt.kind)
    if found:
        return found
    if target.registers >= 32:
        if fmt.group:
            return Blocking(6, 4, 8)
        return Blocking(12, 2) if fmt.kind == "bf16" and not target.has_bf16_dot else Blocking(6, 4)
    return Blocking(2, 2) if fmt.group else Blocking(4, 2)


@dataclass(frozen=True)
class CpuLayoutPolicy:
    """Formats by role: 4-bit packs keep the head (and a tied embedding) at 6 bits, where errors cost most."""

    target: Target
    quant: str
    tuned: Mapping[str, Blocking] = field(default_factory=dict)

    def matrix(self, role: str, n: int, k: int, halves: int) -> Choice:
        wanted = {"none": "bf16", "f32": "f32", "int8": "int8-g128"}.get(self.quant, self.quant)
        fmt = parse_format(wanted)
        if role in (EMBEDDING, HEAD) and fmt.bits == 4:
            fmt = Format("int6", 128)
        if fmt.group:
            fmt = Format(fmt.kind, fit_group(fmt.group, k))
        layout = TiledLayout(n, k, fmt, self.target.lanes, blocking(self.target, fmt, self.tuned).tiles, halves)
        return Choice(fmt.name, layout.name, act_for(fmt, k, self.target.has_bf16_dot).name)


def layout_of(graph: Graph, name: str) -> TiledLayout:
    param = graph.param(name)
    n, k = (int(d) for d in param.value.shape)
    return parse_tiled(param.layout, param.format, (n, k))


class Selector:
    """Walks a laid-out graph and collects calls."""

    def __init__(self, graph: Graph, target: Target, kv_dtype: str, tuned: Mapping[str, Blocking]) -> None:
        self.graph, self.target, self.kv_dtype, self.tuned = graph, target, kv_dtype, tuned
        self.shapes = {name: value.shape for name, value in graph.values().items()}
        self.users = graph.users()
        self.params = {p.name: p for p in graph.params}
        self.calls: list[Call] = []
        self.tables: dict[tuple[str, float], str] = {}
        self.fused: set[str] = set()

    def run(self) -> list[Call]:
        for node in self.graph.nodes:
            if node.output.name not in self.fused:
                getattr(self, f"_{node.op}")(node)
        return self.calls

    def _add(
        self, node: Node, kernel: Kernel, inputs: tuple[str, ...], params: tuple[str, ...], row_bytes: int, output: str = ""
    ) -> None:
        rows = str(node.output.shape[0])
        layer = node.attrs.get("layer", 0)
        assert isinstance(layer, int)
        self.calls.append(Call(kernel, inputs, output or node.output.name, params, rows, row_bytes, layer, node.origin))

    def _width(self, name: str) -> int:
        return int(self.shapes[name][-1])

    def _embedding(self, node: Node) -> None:
        layout = layout_of(self.graph, node.inputs[1])
        kernel = Embedding(layout.n, layout.k, layout, float(node.attrs.get("scale", 1.0)))  # type: ignore[arg-type]
        self._add(node, kernel, (node.inputs[0],), (node.inputs[1],), 4 * layout.k)

    def _stored(self, node: Node) -> tuple[ActFormat, str]:
        """(format, value) that a norm writes: what the only product that reads it wants, else float32."""
        users = self.users.get(node.output.name, ())
        if len(users) == 1 and users[0].op == "quantize":
            self.fused.add(users[0].output.name)
            return parse_act(str(users[0].attrs["act"])), users[0].output.name
        return ActFormat("f32"), node.output.name

    def _rms_norm(self, node: Node) -> None:
        k, (act, output) = self._width(node.output.name), self._stored(node)
        kernel = RmsNorm(k, float(node.attrs["eps"]), act)  # type: ignore[arg-type]
        self._add(node, kernel, (node.inputs[0],), (node.inputs[1],), act.row_bytes(k), output)

    def _layer_norm(self, node: Node) -> None:
        k, (act, output) = self._width(node.output.name), self._stored(node)
        kernel = LayerNorm(k, float(node.attrs["eps"]), bool(node.attrs["has_bias"]), act)  # type: ignore[arg-type]
        self._add(node, kernel, (node.inputs[0],), node.inputs[1:], act.row_bytes(k), output)

    def _quantize(self, node: Node) -> None:
        k, act = self._width(node.output.name), parse_act(str(node.attrs["act"]))
        self._add(node, Quantize(k, act), node.inputs, (), act.row_bytes(k))

    def _gather_rows(self, node: Node) -> None:
        k = self._width(node.output.name)
        self._add(node, GatherRows(k), (node.inputs[0],), (), 4 * k)

    def _linear(self, node: Node) -> None:
        layout = layout_of(self.graph, node.inputs[1])
        bias, residual = bool(node.attrs.get("has_bias")), bool(node.attrs.get("has_residual"))
        block = blocking(self.target, layout.format, self.tuned)
        kernel = Linear(
            n=layout.n,
            k=layout.k,
            weight=layout,
            act=act_for(layout.format, layout.k, self.target.has_bf16_dot),
            bias=bias,
            residual=residual,
            activation=str(node.attrs.get("activation", "")),
            mr=block.rows,
            nr=block.tiles,
            chunk_kib=block.chunk_kib,
        )
        values = (node.inputs[0], node.inputs[-1]) if residual else (node.inputs[0],)
        self._add(node, kernel, values, node.inputs[1 : 2 + bias], 4 * kernel.n_out)

    def _paged_attention(self, node: Node) -> None:
        a = {k: v for k, v in node.attrs.items() if isinstance(v, (int, float))}
        frequency, scale = node.inputs[1], float(a.get("rope_scale", 1.0))
        if (frequency, scale) not in self.tables:
            half = self._width(frequency)
            table = f"{frequency}.table{len(self.tables)}"
            kernel: Kernel = RopeTable(half, scale)
            self.calls.append(Call(kernel, (), table, (frequency,), "tokens", 8 * half, 0, node.origin))
            self.tables[frequency, scale] = table
        kernel = PagedAttention(
            num_heads=int(a["num_heads"]),
            num_kv_heads=int(a["num_kv_heads"]),
            head_dim=int(a["head_dim"]),
            rope_dim=int(a.get("rope_dim", a["head_dim"])),
            window=int(a.get("window", 0)),
            qk_norm=bool(a.get("qk_norm")),
            eps=float(a.get("eps", 0.0)),
            softmax_scale=float(a["scale"]),
            kv_dtype=self.kv_dtype,
            bf16_dot=self.target.has_bf16_dot,
            lanes=self.target.lanes,
            sums=24 if self.target.registers >= 32 else 12,
        )
        values = (node.inputs[0], self.tables[frequency, scale])
        self._add(node, kernel, values, node.inputs[2:], 4 * kernel.num_heads * kernel.head_dim)


def select(graph: Graph, target: Target, kv_dtype: str, tuned: Mapping[str, Blocking]) -> list[Call]:
    """Kernel calls of a laid-out graph, in execution order; ``tuned``: blockings by format, as the layout was made for."""
    return Selector(graph, target, kv_dtype, tuned).run()
