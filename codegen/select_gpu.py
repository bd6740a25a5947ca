"""Which kernels compute which node on a GPU, for which numbers of rows, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ferrum.codegen.formats import ActFormat, parse_act
from ferrum.codegen.kernels.gpu_base import GpuKernel, row_bytes
from ferrum.codegen.kernels.gpu_convert import GpuConvert
from ferrum.codegen.kernels.gpu_decode_attention import GpuDecodeAttention
from ferrum.codegen.kernels.gpu_embedding import GpuEmbedding
from ferrum.codegen.kernels.gpu_gather_rows import GpuGatherRows
from ferrum.codegen.kernels.gpu_large_linear import GpuLargeLinear
from ferrum.codegen.kernels.gpu_layer_norm import GpuLayerNorm
from ferrum.codegen.kernels.gpu_plain_attention import GpuPlainAttention
from ferrum.codegen.kernels.gpu_plain_linear import GpuPlainLinear
from ferrum.codegen.kernels.gpu_prefill_attention import GpuPrefillAttention, tile_tokens
from ferrum.codegen.kernels.gpu_rms_norm import GpuRmsNorm
from ferrum.codegen.kernels.gpu_rope_kv import GpuRopeKv
from ferrum.codegen.kernels.gpu_rope_table import GpuRopeTable
from ferrum.codegen.kernels.gpu_sample import GpuSample
from ferrum.codegen.kernels.gpu_schedule import GpuSchedule
from ferrum.codegen.kernels.gpu_small_linear import GpuSmallLinear
from ferrum.codegen.kernels.paged_attention import BLOCK_SIZE
from ferrum.codegen.layouts import Format, RowLayout, fit_group, parse_format, parse_rows
from ferrum.codegen.target import GpuTarget
from ferrum.graphs.ir import Graph, Node
from ferrum.graphs.passes.layout import EMBEDDING, HEAD, Choice
from ferrum.pack.launches import Rows

Phase = Literal["any", "decode", "mixed"]
# Rows up to which weights stream through registers, and the tiles of 8 rows for it.
_SMALL = ((1, 8, 1), (9, 16, 2), (17, 32, 4), (33, 64, 8))
# Without copies that run ahead: up to 8 rows stream the weights, more take tiles of 32 and 64 rows of x.
_TILES = ((9, 32, 32), (33, 0, 64))
_PLAIN_ROWS = 4
# (fewest, most sequences, splits of a context): few sequences need many splits to fill a GPU.
_SPLITS = ((1, 4, 32), (5, 16, 8), (17, 0, 4))
_COPYLESS_SPLITS = ((1, 4, 8), (5, 0, 1))
_PREFILL_WARPS = 4
_SAMPLE_THREADS = 1024


@dataclass(frozen=True)
class Variant:
    """A kernel for a phase and a size class of its call's rows (``most`` 0: no upper bound)."""

    kernel: GpuKernel
    class_rows: Rows = "one"
    fewest: int = 0
    most: int = 0
    phase: Phase = "any"


@dataclass(frozen=True)
class GpuCall:
    """A node on the device: the kernels of which each recording takes those that fit. ``rows`` is "tokens" or "samples"."""

    variants: tuple[Variant, ...]
    inputs: tuple[str, ...]
    output: str
    params: tuple[str, ...]
    rows: Rows
    row_bytes: int
    layer: int = 0
    origin: str = ""

    @property
    def kernel(self) -> GpuKernel:
        """The kernel for the fewest rows: what a decoding sequence runs."""
        return self.variants[0].kernel


@dataclass(frozen=True)
class GpuLayoutPolicy:
    """Formats by role as on the CPU: 4-bit packs keep the head (and a tied embedding) at 8 bits, where errors cost most."""

    quant: str

    def matrix(self, role: str, n: int, k: int, halves: int) -> Choice:
        fmt = parse_format({"none": "bf16", "f32": "f32", "int8": "int8-g128"}.get(self.quant, self.quant))
        if role in (EMBEDDING, HEAD) and fmt.bits == 4:
            fmt = Format("int8", 128)
        if fmt.group:
            fmt = Format(fmt.kind, fit_group(fmt.group, k))
        return Choice(fmt.name, RowLayout(n, k, fmt, halves).name, "f32" if fmt.kind == "f32" else "bf16")


def rows_of(graph: Graph, name: str) -> RowLayout:
    param = graph.param(name)
    n, k = (int(d) for d in param.value.shape)
    return parse_rows(param.layout, param.format, (n, k))


def small_shape(layout: RowLayout, target: GpuTarget, row_tiles: int) -> tuple[int, int, int, int]:
    """(weight tiles, warps, splits, stages): enough blocks to fill the GPU, enough copies under way to keep its memory busy."""
    # packed formats sum each group apart: two tiles of weights and 64 rows would be more sums than there are registers
    weight_tiles = 1 if row_tiles <= 2 or (row_tiles == 8 and layout.format.group) else 2
    warps = 8 if layout.chunks >= 16 else 4 if layout.chunks >= 4 else 2
    if not target.has_async_copy:
        # nothing is copied ahead, and no threadgroup waits for another: SIMD groups of one share K
        return 1, warps // 2, 1, 1
    blocks, splits = -(-layout.tiles // weight_tiles), 1
    while splits < 8 and blocks * splits < 2 * target.units and layout.chunks >= 4 * warps * splits:
        splits *= 2
    # a target with little shared memory: fewer warps, so that their sums fit
    while warps > 1 and 4 * warps * 8 * row_tiles * (16 * weight_tiles + 4) > target.shared_bytes:
        warps //= 2
    stages = max(2, min(target.stage_bytes // (warps * weight_tiles * 1024), -(-layout.chunks // (warps * splits)) + 1, 8))
    return weight_tiles, warps, splits, stages


def large_shape(layout: RowLayout, target: GpuTarget) -> tuple[int, int, int, int]:
    """(weight rows, rows of x, warps along the weights, stages) of a tile; narrow weights take smaller tiles, more of them."""
    block_n = 128 if layout.padded_n >= 128 * 16 else 64
    return block_n, 128, 2 if block_n == 64 or not layout.format.group else 4, 4 if target.stage_bytes > 32 << 10 else 3


def linear_variants(fields: dict[str, Any], target: GpuTarget, rows: Rows) -> tuple[Variant, ...]:
    """The products of a node for every size class; ``fields`` are those of a ``GpuMatrix``."""
    layout: RowLayout = fields["weight"]
    if layout.format.kind == "f32":
        return (Variant(GpuPlainLinear(**fields, rows_at_once=_PLAIN_ROWS)),)
    small = []
    for fewest, most, row_tiles in _SMALL if target.has_async_copy else _SMALL[:1]:
        weight_tiles, warps, splits, stages = small_shape(layout, target, row_tiles)
        shape: dict[str, Any] = {
            "row_tiles": row_tiles,
            "weight_tiles": weight_tiles,
            "warps": warps,
            "splits": splits,
            "stages": stages,
        }
        small.append(Variant(GpuSmallLinear(**fields, **shape), rows, fewest, most))
    if not target.has_async_copy:
        tiles = ((GpuLargeLinear(**fields, block_n=64, block_m=m, warps_n=2, stages=2), a, b) for a, b, m in _TILES)
        return (*small, *(Variant(kernel, rows, fewest, most) for kernel, fewest, most in tiles))
    block_n, block_m, warps_n, stages = large_shape(layout, target)
    large = GpuLargeLinear(**fields, block_n=block_n, block_m=block_m, warps_n=warps_n, stages=stages)
    return (*small, Variant(large, rows, _SMALL[-1][1] + 1))


def matrix_attention(fields: dict[str, Any]) -> tuple[Variant, ...]:
    """Decode by the number of sequences, and prefill; ``fields`` are those of a ``GpuAttention``."""
    warps, keys = (4, 64) if fields["head_dim"] <= 128 else (2, 32)
    decode = [
        Variant(GpuDecodeAttention(**fields, splits=splits, max_seqs=most, warps=warps, stages=2), "seqs", fewest, most)
        for fewest, most, splits in _SPLITS
    ]
    return (*decode, Variant(GpuPrefillAttention(**fields, warps=_PREFILL_WARPS, keys=keys), phase="mixed"))


def copyless_attention(fields: dict[str, Any], target: GpuTarget) -> tuple[Variant, ...]:
    """As ``matrix_attention`` where nothing is copied ahead: what shared memory holds bounds the warps and the keys."""
    heads, dim = fields["num_heads"] // fields["num_kv_heads"], fields["head_dim"]
    warps = max(w for w in (1, 2, 4) if w == 1 or 4 * w * heads * (dim + 2) <= target.shared_bytes)
    keys = 32 if dim <= 64 else 16 if dim <= 128 else 8
    decode = [
        Variant(GpuDecodeAttention(**fields, splits=splits, max_seqs=most, warps=warps, stages=0), "seqs", fewest, most)
        for fewest, most, splits in _COPYLESS_SPLITS
    ]
    return (*decode, Variant(GpuPrefillAttention(**fields, warps=_PREFILL_WARPS, keys=keys), phase="mixed"))


class GpuSelector:
    """Walks a laid-out graph and collects calls."""

    def __init__(self, graph: Graph, target: GpuTarget, quant: str) -> None:
        self.graph, self.target = graph, target
        self.kv_dtype = "f32" if quant == "f32" else "bf16"
        self.shapes = {name: value.shape for name, value in graph.values().items()}
        self.users = graph.users()
        self.calls: list[GpuCall] = []
        self.tables: dict[tuple[str, float], str] = {}
        self.fused: set[str] = set()
        self.scheduled = 0
        attention = [n for n in graph.nodes if n.op == "paged_attention"]
        geometry = {(n.attrs["num_kv_heads"], n.attrs["head_dim"]) for n in attention}
        assert len(geometry) == 1, "layers differ in their KV geometry"
        heads, dim = next(iter(geometry))
        self.layer_bytes = 2 * BLOCK_SIZE * int(heads) * int(dim) * (4 if quant == "f32" else 2)  # type: ignore[arg-type]
        self.block_bytes = len(attention) * self.layer_bytes

    def run(self) -> list[GpuCall]:
        for node in self.graph.nodes:
            if node.output.name not in self.fused:
                getattr(self, f"_{node.op}")(node)
        self._sample(self.graph.outputs[0])
        return self.calls

    def _add(
        self,
        node: Node,
        variants: GpuKernel | tuple[Variant, ...],
        inputs: tuple[str, ...],
        params: tuple[str, ...],
        size: int,
        output: str = "",
    ) -> None:
        made = (Variant(variants),) if isinstance(variants, GpuKernel) else variants
        rows: Rows = "samples" if node.output.shape[0] == "samples" else "tokens"
        layer = node.attrs.get("layer", 0)
        assert isinstance(layer, int)
        self.calls.append(GpuCall(made, inputs, output or node.output.name, params, rows, size, layer, node.origin))

    def _width(self, name: str) -> int:
        return int(self.shapes[name][-1])

    def _stored(self, node: Node) -> tuple[str, str]:
        """(format, value) that the node's kernel writes: what the only product that reads it wants, else float32."""
        users = self.users.get(node.output.name, ())
        if len(users) == 1 and users[0].op == "quantize":
            self.fused.add(users[0].output.name)
            return str(users[0].attrs["act"]), users[0].output.name
        return "f32", node.output.name

    def _embedding(self, node: Node) -> None:
        layout = rows_of(self.graph, node.inputs[1])
        kernel = GpuEmbedding(layout.n, layout.k, layout, float(node.attrs.get("scale", 1.0)))  # type: ignore[arg-type]
        self._add(node, kernel, (), (node.inputs[1],), 4 * layout.k)

    def _rms_norm(self, node: Node) -> None:
        k, (out, name) = self._width(node.output.name), self._stored(node)
        kernel = GpuRmsNorm(k, float(node.attrs["eps"]), ActFormat(out))  # type: ignore[arg-type]
        self._add(node, kernel, (node.inputs[0],), (node.inputs[1],), row_bytes(out, k), name)

    def _layer_norm(self, node: Node) -> None:
        k, (out, name) = self._width(node.output.name), self._stored(node)
        kernel = GpuLayerNorm(k, float(node.attrs["eps"]), bool(node.attrs["has_bias"]), ActFormat(out))  # type: ignore[arg-type]
        self._add(node, kernel, (node.inputs[0],), node.inputs[1:], row_bytes(out, k), name)

    def _quantize(self, node: Node) -> None:
        k, act = self._width(node.output.name), parse_act(str(node.attrs["act"]))
        self._add(node, GpuConvert(k, act), node.inputs, (), row_bytes(act.kind, k))

    def _gather_rows(self, node: Node) -> None:
        k = self._width(node.output.name)
        self._add(node, GpuGatherRows(k), (node.inputs[0],), (), 4 * k)

    def _linear(self, node: Node) -> None:
        layout = rows_of(self.graph, node.inputs[1])
        bias, residual = bool(node.attrs.get("has_bias")), bool(node.attrs.get("has_residual"))
        out, name = self._stored(node)
        fields = {"n": layout.n, "k": layout.k, "weight": layout, "bias": bias, "residual": residual, "out": out}
        fields["activation"] = str(node.attrs.get("activation", ""))
        rows: Rows = "samples" if node.output.shape[0] == "samples" else "tokens"
        variants = linear_variants(fields, self.target, rows)
        values = (node.inputs[0], node.inputs[-1]) if residual else (node.inputs[0],)
        size = variants[0].kernel.out_bytes  # type: ignore[attr-defined]
        self._add(node, variants, values, node.inputs[1 : 2 + bias], size, name)

    def _paged_attention(self, node: Node) -> None:
        a = {k: v for k, v in node.attrs.items() if isinstance(v, (int, float))}
        heads, kv_heads, dim = int(a["num_heads"]), int(a["num_kv_heads"]), int(a["head_dim"])
        self._schedule(node, heads // kv_heads)
        rotate = GpuRopeKv(
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=dim,
            rope_dim=int(a.get("rope_dim", dim)),
            qk_norm=bool(a.get("qk_norm")),
            eps=float(a.get("eps", 0.0)),
            kv_dtype=self.kv_dtype,
            block_bytes=self.block_bytes,
        )
        rotated = f"{node.output.name}.q"
        table = self._table(node, float(a.get("rope_scale", 1.0)))
        norms, size = node.inputs[2:], row_bytes(self.kv_dtype, heads * dim)
        self._add(node, rotate, (node.inputs[0], table), norms, size, rotated)
        out, name = self._stored(node)
        fields = {"num_heads": heads, "num_kv_heads": kv_heads, "head_dim": dim, "kv_dtype": self.kv_dtype, "out": out}
        fields |= {"window": int(a.get("window", 0)), "softmax_scale": float(a["scale"]), "block_bytes": self.block_bytes}
        self._add(node, self._attention(fields), (rotated,), (), row_bytes(out, heads * dim), name)

    def _attention(self, fields: dict[str, Any]) -> tuple[Variant, ...]:
        dim, group = fields["head_dim"], fields["num_heads"] // fields["num_kv_heads"]
        if self.kv_dtype != "bf16" or dim % 32 or dim > 256 or group > 16:
            return (Variant(GpuPlainAttention(**fields)),)
        if self.target.has_async_copy:
            return matrix_attention(fields)
        # a head below 64 leaves no room for the scores where the keys were
        return copyless_attention(fields, self.target) if dim >= 64 else (Variant(GpuPlainAttention(**fields)),)

    def _schedule(self, node: Node, group: int) -> None:
        tile = tile_tokens(group, _PREFILL_WARPS)
        assert self.scheduled in (0, tile), "layers differ in their groups of heads"
        if not self.scheduled:
            self.calls.append(GpuCall((Variant(GpuSchedule(tile)),), (), "", (), "tokens", 0, 0, node.origin))
        self.scheduled = tile

    def _table(self, node: Node, scale: float) -> str:
        frequency = node.inputs[1]
        if (frequency, scale) not in self.tables:
            half = self._width(frequency)
            name = f"{frequency}.table{len(self.tables)}"
            variants = (Variant(GpuRopeTable(half, scale)),)
            self.calls.append(GpuCall(variants, (), name, (frequency,), "tokens", 8 * half, 0, node.origin))
            self.tables[frequency, scale] = name
        return self.tables[frequency, scale]

    def _sample(self, logits: str) -> None:
        kernel = GpuSample(self._width(logits), min(_SAMPLE_THREADS, self.target.max_threads))
        self.calls.append(GpuCall((Variant(kernel),), (logits,), "", (), "samples", 0))


def select_gpu(graph: Graph, target: GpuTarget, quant: str) -> list[GpuCall]:
    """Calls of a laid-out graph, in execution order."""
    return GpuSelector(graph, target, quant).run()
