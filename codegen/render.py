"""jinja2 templates to one source file. A name that a template misses is an error, never an empty string."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import jinja2

from ferrum.codegen.kernels.attend import Attend
from ferrum.codegen.kernels.base import Kernel, distinct
from ferrum.codegen.kernels.cpu import REPLICATE_ROWS
from ferrum.codegen.kernels.gpu import GpuKernel
from ferrum.codegen.kernels.paged_attention.cpu import CpuAttention
from ferrum.codegen.kernels.sample import BINS, LISTED, GpuSample, GpuSampling
from ferrum.codegen.plan import LayerKv, Plan, thread_bytes
from ferrum.codegen.target import GpuTarget, Target
from ferrum.pack.launches import Launch, SlotArg, StateArg, Sync, Threads, WeightsArg
from ferrum.pack.step import INPUTS, MAX_LOGPROBS, OUTPUTS

TEMPLATES = Path(__file__).resolve().parent.parent / "templates"
_C_TYPES = {"int32": "int32_t", "uint32": "uint32_t", "float32": "float", "uint64": "uint64_t"}
# Least weights of a CPU's launch record: with them it fills a cache line.
_WEIGHTS = 3
_SYNC: dict[Sync, int] = {"always": 0, "shared": 1, "prefill": 2}


@cache
def environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=False,
        lstrip_blocks=False,
        keep_trailing_newline=True,
        autoescape=False,
    )


SUFFIXES = {"cpu": "c", "cuda": "cu", "metal": "metal"}


def templates_digest(device: str) -> str:
    """SHA-256 over names and bytes of a device's templates, those that it shares with another included."""
    digest = hashlib.sha256()
    folders = ("common", device) if device == "cpu" else ("common", device, "gpu")
    for path in sorted(path for folder in folders for path in (TEMPLATES / folder).rglob("*")):
        if path.is_file():
            digest.update(f"{path.relative_to(TEMPLATES).as_posix()}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def kernel_source(kernel: Kernel, target: Target | GpuTarget) -> str:
    """One kernel, without what all kernels share: from its device's template, else from the one that GPUs have in common."""
    own = f"{target.device}/{kernel.stem}.{SUFFIXES[target.device]}.j2"
    template = environment().select_template([own, f"gpu/{kernel.stem}.j2"])
    return template.render(kernel.template_context() | {"target": target})


def _step_fields() -> list[tuple[str, list[str]]]:
    """The arrays of a step as members of a C record: (type, names) of neighbours of one type."""
    typed = [(f"const {_C_TYPES[a.dtype]}", a.name) for a in INPUTS] + [(_C_TYPES[a.dtype], a.name) for a in OUTPUTS]
    return [(kind, [name for _, name in group]) for kind, group in groupby(typed, key=itemgetter(0))]


def render_step(plan: Plan, target: Target, contract: str) -> str:
    """The whole step of a CPU as one C source."""
    records = [_record(launch, kernel) for launch, (_, kernel) in zip(plan.table.launches, plan.launched, strict=True)]
    attention = [k for k in plan.kernels if isinstance(k, CpuAttention | Attend)]
    return (
        environment()
        .get_template("cpu/step.c.j2")
        .render(
            name=plan.graph.name.replace("*/", ""),
            target=target,
            contract=contract,
            vocab_size=plan.vocab_size,
            width=plan.width,
            replicate_rows=REPLICATE_ROWS,
            scratch_bytes=thread_bytes(plan.kernels),
            slots=[slot.bytes[0] for slot in plan.table.slots],
            launches=records,
            others=max([1, *(len(r["others"]) for r in records)]),
            weights=max([_WEIGHTS, *(len(r["weights"]) for r in records)]),
            kernels=[kernel_source(k, target) for k in plan.kernels],
            elements=any(k.elements for k in plan.kernels),
            tile_tokens=min((k.tile_tokens for k in attention), default=1),
            kv_runs=[_kv_runs(layers) for layers in plan.kv.groups],
            logits_slot=plan.table.logits_slot,
            step_fields=_step_fields(),
            max_logprobs=MAX_LOGPROBS,
        )
    )


def _record(launch: Launch, kernel: Kernel) -> dict[str, Any]:
    """A launch as the C record has it: slots, offsets into the weights, the layer's place in a KV block."""
    assert isinstance(launch.on, Threads)
    named = dict(zip(kernel.args, launch.args, strict=True))
    values = [arg.slot for name, arg in named.items() if name.startswith("value:") and isinstance(arg, SlotArg)]
    result, state = named.get("result"), named.get("state")
    return {
        "symbol": launch.symbol,
        "rows": int(launch.work[0][0].rows == "samples"),
        "first": values[0] if values else 0,
        "private": int("value:0" in kernel.args and kernel.args.index("value:0") in launch.on.private),
        "result": result.slot if isinstance(result, SlotArg) else 0,
        "others": values[1:],
        "state": state.offset if isinstance(state, StateArg) else 0,
        "sync": _SYNC[launch.on.sync],
        "weights": [arg.offset for arg in launch.args if isinstance(arg, WeightsArg)],
    }


def _kv_runs(layers: list[LayerKv]) -> list[tuple[int, int]]:
    """(KV heads, bytes of one in a block) of a group's layers that follow each other with heads of one size."""
    runs: list[tuple[int, int]] = []
    for layer in layers:
        heads = runs.pop()[0] if runs and runs[-1][1] == layer.head_bytes else 0
        runs.append((heads + layer.kept.heads, layer.head_bytes))
    return runs


def render_kernels(name: str, kernels: Sequence[GpuKernel], target: GpuTarget, contract: str) -> str:
    """The distinct kernels of a GPU as one source."""
    sample = next((k for k in kernels if isinstance(k, GpuSampling)), GpuSample(1, 64, 32))
    return (
        environment()
        .get_template(f"{target.device}/step.{SUFFIXES[target.device]}.j2")
        .render(
            name=name.replace("*/", ""),
            target=target,
            contract=contract,
            vocab_size=sample.vocab_size,
            sample_threads=sample.threads,
            sample_chunk=sample.chunk,
            sample_bins=BINS,
            sample_list=LISTED,
            max_logprobs=MAX_LOGPROBS,
            elements=any(kernel.elements for kernel in kernels),
            kernels=[kernel_source(kernel, target) for kernel in distinct(kernels)],
        )
    )


@cache
def common_source(target: GpuTarget) -> str:
    """What all kernels of a target stand on, which is not the same for all targets of a device; without its comment of names."""
    return render_kernels("", [], target, "").partition("\n")[2]
