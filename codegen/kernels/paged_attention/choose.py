"""Which kernels compute a ``paged_attention`` node: on CPUs one with everything in it, on GPUs rotation and attention apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ferrum.codegen.kernels import rope
from ferrum.codegen.kernels.paged_attention import BLOCK_SIZE, KV_BYTES
from ferrum.codegen.kernels.paged_attention.apart import CpuAttend, Heads
from ferrum.codegen.kernels.paged_attention.cpu import CpuAttention
from ferrum.codegen.kernels.paged_attention.decode import DecodeAttention
from ferrum.codegen.kernels.paged_attention.plain import PlainAttention
from ferrum.codegen.kernels.paged_attention.plain_apart import ApartAttention
from ferrum.codegen.kernels.paged_attention.prefill import PrefillAttention
from ferrum.codegen.kernels.rope_kv import RopeKv
from ferrum.codegen.kernels.schedule import Schedule, tile_tokens
from ferrum.codegen.kernels.store_kv import StoreKv
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


@dataclass(frozen=True)
class Apart:
    """What a ``paged_attend`` reads: queries, keys and values where they lie, if each head lies in order."""

    bases: tuple[str, ...]
    heads: tuple[Heads, Heads, Heads]
    shared: dict[str, Any]
    options: dict[str, Any]
    width: int

    @classmethod
    def of(cls, walk: Walk, node: Node) -> Apart:
        q, k, v = views = [heads_of(walk, name, node) for name in node.inputs[:3]]
        bases = tuple(dict.fromkeys(view.base for view in views))
        lying = [Heads(bases.index(view.base), view.width, view.offset, view.strides[0]) for view in views]
        (num_heads, head_dim), (num_kv_heads, _), (_, width) = q.dims, k.dims, v.dims
        shared = {
            "num_heads": num_heads,
            "num_kv_heads": num_kv_heads,
            "head_dim": head_dim,
            "window": int(number(node, "window")),
            "softmax_scale": float(number(node, "scale")),
            "kv_dtype": walk.kv_dtype,
            "pool": walk.kept[int(number(node, "layer"))].group,
        }
        options = {
            "value_width": width,
            "softcap": float(number(node, "softcap")),
            "operands": " ".join(words(node.attrs, "operands")),
        }
        return cls(bases, (lying[0], lying[1], lying[2]), shared, options, num_heads * width)


def of_values(walk: Walk, node: Node) -> None:
    target, found = walk.target, Apart.of(walk, node)
    assert isinstance(target, Target)
    q, k, v = found.heads
    registers = _registers(target, walk.kv_dtype, found.shared["head_dim"])
    kernel = CpuAttend(**found.shared, **found.options, **registers, rope_dim=0, qk_norm=False, eps=0.0, q=q, k=k, v=v)
    walk.add(node, kernel, found.bases, node.inputs[3:], 4 * found.width)


def of_values_on_gpu(walk: Walk, node: Node) -> None:
    """Keys and values are stored, and queries copied in the cache's format; then attention as of joined projections, where that
    has all that is asked for."""
    assert isinstance(walk.target, GpuTarget)
    found, block = Apart.of(walk, node), _block_bytes(walk, node)
    shared, options = found.shared, found.options
    _schedule(walk, node, shared)
    sizes = {name: shared[name] for name in ("num_heads", "num_kv_heads", "head_dim", "kv_dtype", "pool")}
    q, k, v = found.heads
    store = StoreKv(**sizes, value_width=options["value_width"], q=q, k=k, v=v, block_bytes=block)
    queries, size = f"{node.output.name}.q", ActFormat(walk.kv_dtype).stride_bytes(shared["num_heads"] * shared["head_dim"])
    walk.add(node, store, found.bases, (), size, queries)
    out, name = walk.stored(node)
    fields = shared | {"out": out.kind, "block_bytes": block}
    plain = not options["softcap"] and not options["operands"] and options["value_width"] == shared["head_dim"]
    variants = gpu_variants(fields, walk.target) if plain else (Variant(ApartAttention(**fields, **options)),)
    walk.add(node, variants, (queries,), node.inputs[3:], out.stride_bytes(found.width), name)


def _schedule(walk: Walk, node: Node, heads: dict[str, Any]) -> None:
    tile = tile_tokens(heads["num_heads"] // heads["num_kv_heads"], _PREFILL_WARPS)
    walk.once(("schedule", tile, heads["pool"]), node, Schedule(tile, heads["pool"]), (), 0, "")


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
    _schedule(walk, node, heads)
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
    values = sum(kept.heads * (kept.width + kept.value_width) for kept in walk.kept.values() if kept.group == group)
    return BLOCK_SIZE * values * KV_BYTES[walk.kv_dtype]


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
