"""Which products compute a ``linear`` node."""

from __future__ import annotations

from typing import Any

from ferrum.codegen.kernels.linear.cpu import Blocking, CpuLinear
from ferrum.codegen.kernels.linear.large import LargeLinear
from ferrum.codegen.kernels.linear.plain import PlainLinear
from ferrum.codegen.kernels.linear.small import SmallLinear
from ferrum.codegen.layouts import RowLayout, TiledLayout
from ferrum.codegen.layouts.activations import ActFormat
from ferrum.codegen.target import GpuTarget, Target
from ferrum.codegen.tuned import blocking
from ferrum.codegen.walk import Variant, Walk
from ferrum.graphs.ir import Node
from ferrum.pack.launches import Rows

# Rows up to which weights stream through registers, and the tiles of 8 rows for it.
_SMALL = ((1, 8, 1), (9, 16, 2), (17, 32, 4), (33, 64, 8))
# Without copies that run ahead: up to 8 rows stream the weights, more take tiles of 32 and 64 rows of x.
_TILES = ((9, 32, 32), (33, 0, 64))
_PLAIN_ROWS = 4


def on_cpu(walk: Walk, node: Node) -> None:
    target, shape = walk.target, _shape(walk, node)
    layout = shape["weight"]
    assert isinstance(target, Target) and isinstance(layout, TiledLayout)
    act = walk.read_as(node.inputs[0])
    block = blocking(target, layout.format, walk.tuned, act)
    kernel = CpuLinear(**shape, act=act, **cut(layout, target, block))
    _add(walk, node, (Variant(kernel),), 4 * kernel.n_out, node.output.name)


def cut(layout: TiledLayout, target: Target, block: Blocking) -> dict[str, Any]:
    """How products go over units of a layout: whole units where the target cut them, else parts of as many rows as they hold."""
    parts, left = divmod(layout.unit_rows, block.tiles * target.lanes)
    assert parts and not left, f"{target.name} multiplies {block.tiles} x {target.lanes} rows of a unit of {layout.unit_rows}"
    return {"mr": block.rows, "nr": block.tiles, "chunk_kib": block.chunk_kib, "unit_parts": parts, "amx_rows": block.amx_rows}


def on_gpu(walk: Walk, node: Node) -> None:
    assert isinstance(walk.target, GpuTarget)
    out, name = walk.stored(node)
    fields = _shape(walk, node) | {"out": out.kind}
    variants = gpu_variants(fields, walk.target, walk.rows(node))
    n_out = fields["weight"].n // 2 if fields["activation"] else fields["weight"].n
    _add(walk, node, variants, ActFormat(out.kind).stride_bytes(n_out), name)


def _shape(walk: Walk, node: Node) -> dict[str, Any]:
    layout = walk.layout(node.inputs[1])
    return {
        "n": layout.n,
        "k": layout.k,
        "weight": layout,
        "bias": bool(node.attrs.get("has_bias")),
        "residual": bool(node.attrs.get("has_residual")),
        "activation": str(node.attrs.get("activation", "")),
    }


def _add(walk: Walk, node: Node, variants: tuple[Variant, ...], row_bytes: int, name: str) -> None:
    values = (node.inputs[0], node.inputs[-1]) if node.attrs.get("has_residual") else (node.inputs[0],)
    walk.add(node, variants, values, node.inputs[1 : 2 + bool(node.attrs.get("has_bias"))], row_bytes, name)


def gpu_variants(fields: dict[str, Any], target: GpuTarget, rows: Rows) -> tuple[Variant, ...]:
    """The products of a node for every size class; ``fields`` are those of a ``GpuLinear``."""
    layout: RowLayout = fields["weight"]
    if layout.format.kind == "f32":
        return (Variant(PlainLinear(**fields, rows_at_once=_PLAIN_ROWS)),)
    small = []
    for fewest, most, row_tiles in _SMALL if target.has_staging else _SMALL[:1]:
        weight_tiles, warps, splits, stages = small_shape(layout, target, row_tiles)
        kernel = SmallLinear(**fields, row_tiles=row_tiles, weight_tiles=weight_tiles, warps=warps, splits=splits, stages=stages)
        small.append(Variant(kernel, rows, fewest, most))
    if not target.has_staging:
        tiles = ((LargeLinear(**fields, block_n=64, block_m=m, warps_n=2, stages=2), a, b) for a, b, m in _TILES)
        return (*small, *(Variant(kernel, rows, fewest, most) for kernel, fewest, most in tiles))
    block_n, block_m, warps_n, stages = large_shape(layout, target)
    large = LargeLinear(**fields, block_n=block_n, block_m=block_m, warps_n=warps_n, stages=stages)
    return (*small, Variant(large, rows, _SMALL[-1][1] + 1))


def small_shape(layout: RowLayout, target: GpuTarget, row_tiles: int) -> tuple[int, int, int, int]:
    """(weight tiles, warps, splits, stages): enough blocks to fill the GPU, enough copies under way to keep its memory busy."""
    # packed formats sum each group apart: two tiles of weights and 64 rows would be more sums than there are registers
    weight_tiles = 1 if row_tiles <= 2 or (row_tiles == 8 and layout.format.group) else 2
    warps = 8 if layout.chunks >= 16 else 4 if layout.chunks >= 4 else 2
    if not target.has_staging:
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
