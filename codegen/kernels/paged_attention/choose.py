"""Which kernels compute a ``paged_attention`` node: on CPUs one with everything in it, on GPUs rotation and attention apart."""

from __future__ import annotations

from typing import Any

from ferrum.codegen.kernels import rope
from ferrum.codegen.kernels.paged_attention import BLOCK_SIZE, KV_BYTES
from ferrum.codegen.kernels.paged_attention.apart import CpuAttend, Heads
from ferrum.codegen.kernels.paged_attention.cpu import CpuAttention
from ferrum.codegen.kernels.paged_attention.decode import DecodeAttention
from ferrum.codegen.kernels.paged_attention.plain import PlainAttention
from ferrum.codegen.kernels.paged_attention.prefill import PrefillAttention
from ferrum.codegen.kernels.rope_kv import RopeKv
from ferrum.codegen.kernels.schedule import Schedule, tile_tokens
from ferrum.codegen.layouts.activations import ActFormat
from ferrum.codegen.moves import copied, value_view
from ferrum.codegen.target import GpuTarget, Target
from ferrum.codegen.views import View
from ferrum.codegen.walk import Variant, Walk, number
from ferrum.graphs.ir import Node
from ferrum.graphs.op_spec import words

# (fewest, most sequences, splits of a context): few sequences need many splits to fill a GPU.
_SPLITS: tuple[tuple[int, int, int], ...] = ((1, 4, 32), (5, 16, 8), (17, 0, 4))
_COPYLESS_SPLITS: tuple[tuple[int, int, int], ...] = ((1, 4, 8), (5, 0, 1))
_PREFILL_WARPS = 4


def on_cpu(walk: Walk, node: Node) -> None:
    target = walk.target
    assert isinstance(target, Target)
    table = rope.table(walk, node, node.inputs[1])
    kernel = CpuAttention(
        **_heads(walk, node),
        **_rotation(node),
        **_registers(target, walk.kv_dtype, int(number(node, "head_dim"))),
    )
    walk.add(node, kernel, (node.inputs[0], table), node.inputs[2:], 4 * kernel.num_heads * kernel.head_dim)


def heads_of(walk: Walk, name: str, node: Node) -> View:
    """The heads of a value, each of which must lie in order."""
    view = value_view(walk, name, node.origin)
    return view if view.packed(1) else walk.view(copied(walk, name, node.origin))


def of_values(walk: Walk, node: Node) -> None:
    """A ``paged_attend``: its queries, keys and values are read where they lie, if each head lies in order."""
    target = walk.target
    assert isinstance(target, Target)
    views = [heads_of(walk, name, node) for name in node.inputs[:3]]
    bases = tuple(dict.fromkeys(view.base for view in views))
    q, k, v = (Heads(bases.index(view.base), view.width, view.offset, view.strides[0]) for view in views)
    layer, ((num_heads, head_dim), (num_kv_heads, _), (_, width)) = int(number(node, "layer")), (view.dims for view in views)
    kernel = CpuAttend(
        num_heads, num_kv_heads, head_dim, int(number(node, "window")), float(number(node, "scale")), walk.kv_dtype,
        rope_dim=0, qk_norm=False, eps=0.0, **_registers(target, walk.kv_dtype, head_dim), q=q, k=k, v=v, value_width=width,
        softcap=float(number(node, "softcap")), operands=" ".join(words(node.attrs, "operands")), pool=walk.kept[layer].group,
    )  # fmt: skip
    walk.add(node, kernel, bases, node.inputs[3:], 4 * num_heads * width)


def _registers(target: Target, kv_dtype: str, head_dim: int) -> dict[str, Any]:
    """What of an attention kernel follows from the registers of a CPU. Tiles take at least four words of q at once."""
    step = target.unit[0] if target.unit else 0
    tiles = target.amx and kv_dtype == "bf16" and head_dim % 8 == 0
    return {
        "bf16_dot": target.has_bf16_dot or tiles,
        "tiles": tiles,
        "lanes": target.lanes,
        "sums": 24 if target.registers >= 32 else 12,
        "value_step": 0 if step == target.lanes else step,
    }


def on_gpu(walk: Walk, node: Node) -> None:
    assert isinstance(walk.target, GpuTarget)
    heads, block = _heads(walk, node), _block_bytes(walk, node)
    width = heads["num_heads"] * heads["head_dim"]
    tile = tile_tokens(heads["num_heads"] // heads["num_kv_heads"], _PREFILL_WARPS)
    walk.once(("schedule", tile, heads["pool"]), node, Schedule(tile, heads["pool"]), (), 0, "")
    shared = {name: heads[name] for name in ("num_heads", "num_kv_heads", "head_dim", "kv_dtype", "pool")}
    rotate = RopeKv(**shared, **_rotation(node), block_bytes=block)
    rotated, size = f"{node.output.name}.q", ActFormat(walk.kv_dtype).stride_bytes(width)
    walk.add(node, rotate, (node.inputs[0], rope.table(walk, node, node.inputs[1])), node.inputs[2:], size, rotated)
    out, name = walk.stored(node)
    variants = gpu_variants(heads | {"out": out.kind, "block_bytes": block}, walk.target)
    walk.add(node, variants, (rotated,), (), out.stride_bytes(width), name)


def _heads(walk: Walk, node: Node) -> dict[str, Any]:
    whole = {name: int(number(node, name)) for name in ("num_heads", "num_kv_heads", "head_dim", "window")}
    pool = walk.kept[int(number(node, "layer"))].group
    return whole | {"softmax_scale": float(number(node, "scale")), "kv_dtype": walk.kv_dtype, "pool": pool}


def _rotation(node: Node) -> dict[str, Any]:
    rope_dim = int(number(node, "rope_dim", number(node, "head_dim")))
    return {"rope_dim": rope_dim, "qk_norm": bool(node.attrs.get("qk_norm")), "eps": float(number(node, "eps"))}


def _block_bytes(walk: Walk, node: Node) -> int:
    """Bytes of a block of the node's group with all its layers, which may differ."""
    group = walk.kept[int(number(node, "layer"))].group
    values = sum(kept.heads * kept.width for kept in walk.kept.values() if kept.group == group)
    return 2 * BLOCK_SIZE * values * KV_BYTES[walk.kv_dtype]


def gpu_variants(fields: dict[str, Any], target: GpuTarget) -> tuple[Variant, ...]:
    """Attention by phase and number of sequences; ``fields`` are those of a ``GpuAttention``."""
    dim, group = fields["head_dim"], fields["num_heads"] // fields["num_kv_heads"]
    # without copies, a head below 64 leaves no room for the scores where the keys were
    least = 1 if target.has_staging else 64
    if fields["kv_dtype"] != "bf16" or dim % 32 or not least <= dim <= 256 or group > 16:
        return (Variant(PlainAttention(**fields)),)
    splits = _SPLITS if target.has_staging else _COPYLESS_SPLITS
    if target.has_staging:
        warps, keys, stages = _staged(fields, target)
    else:  # what shared memory holds bounds the warps and the keys
        warps = max(w for w in (1, 2, 4) if w == 1 or 4 * w * group * (dim + 2) <= target.shared_bytes)
        keys, stages = 32 if dim <= 64 else 16 if dim <= 128 else 8, 0
    decode = [
        Variant(DecodeAttention(**fields, splits=parts, max_seqs=most, warps=warps, stages=stages), "seqs", fewest, most)
        for fewest, most, parts in splits
    ]
    return (*decode, Variant(PrefillAttention(**fields, warps=_PREFILL_WARPS, keys=keys), phase="mixed"))


def _staged(fields: dict[str, Any], target: GpuTarget) -> tuple[int, int, int]:
    """(warps of decode, keys of prefill, stages): as many as shared memory holds two deep."""
    warps, keys, stages = (4, 64, 2) if fields["head_dim"] <= 128 else (2, 32, 2)

    def too_large(kernel: DecodeAttention | PrefillAttention) -> bool:
        return kernel.geometry("seqs").shared > target.shared_bytes

    while too_large(DecodeAttention(**fields, splits=1, max_seqs=0, warps=warps, stages=stages)):
        warps //= 2
    while too_large(PrefillAttention(**fields, warps=_PREFILL_WARPS, keys=keys)):
        keys //= 2
    return warps, keys, stages
