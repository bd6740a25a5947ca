"""jinja2 templates to one source file. A name that a template misses is an error, never an empty string."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import jinja2

from ferrum.codegen.kernels.gpu_base import GpuKernel
from ferrum.codegen.kernels.gpu_sample import GpuSample
from ferrum.codegen.plan import REPLICATE_ROWS, Plan
from ferrum.codegen.target import GpuTarget, Target
from ferrum.pack.step import INPUTS, MAX_LOGPROBS, OUTPUTS

TEMPLATES = Path(__file__).resolve().parent.parent / "templates"
_C_TYPES = {"int32": "int32_t", "uint32": "uint32_t", "float32": "float", "uint64": "uint64_t"}


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


def templates_digest(device: str) -> str:
    """SHA-256 over names and bytes of a device's templates."""
    digest = hashlib.sha256()
    for path in sorted((TEMPLATES / device).rglob("*")):
        if path.is_file():
            digest.update(f"{path.relative_to(TEMPLATES).as_posix()}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def _step_fields() -> list[tuple[str, list[str]]]:
    """The arrays of a step as members of a C record: (type, names) of neighbours of one type."""
    typed = [(f"const {_C_TYPES[a.dtype]}", a.name) for a in INPUTS] + [(_C_TYPES[a.dtype], a.name) for a in OUTPUTS]
    return [(kind, [name for _, name in group]) for kind, group in groupby(typed, key=itemgetter(0))]


def render_step(plan: Plan, target: Target, contract: str) -> str:
    """The whole step as one C source."""
    env = environment()
    sources = [env.get_template(f"{target.device}/{k.stem}.c.j2").render(k.template_context()) for k in plan.kernels]
    return env.get_template(f"{target.device}/step.c.j2").render(
        name=plan.graph.name.replace("*/", ""),
        target=target,
        contract=contract,
        vocab_size=plan.vocab_size,
        replicate_rows=REPLICATE_ROWS,
        scratch_bytes=plan.scratch_bytes,
        slots=plan.slots,
        launches=plan.launches,
        kernels=sources,
        tile_tokens=plan.tile_tokens,
        kv=plan.kv,
        logits_slot=plan.logits_slot,
        step_fields=_step_fields(),
        max_logprobs=MAX_LOGPROBS,
    )


_EXTENSION = {"cuda": "cu", "metal": "metal"}


def kernel_source(kernel: GpuKernel, target: GpuTarget) -> str:
    """One kernel of a GPU, without what all kernels share."""
    template = environment().get_template(f"{target.device}/{kernel.stem}.{_EXTENSION[target.device]}.j2")
    return template.render(kernel.template_context() | {"target": target})


def render_kernels(name: str, kernels: Sequence[GpuKernel], target: GpuTarget, contract: str) -> str:
    """The distinct kernels of a GPU as one source."""
    sample = next((k for k in kernels if isinstance(k, GpuSample)), GpuSample(1, 32))
    template = environment().get_template(f"{target.device}/step.{_EXTENSION[target.device]}.j2")
    return template.render(
        name=name.replace("*/", ""),
        target=target,
        contract=contract,
        vocab_size=sample.vocab_size,
        sample_threads=sample.threads,
        max_logprobs=MAX_LOGPROBS,
        kernels=[kernel_source(kernel, target) for kernel in {k.symbol: k for k in kernels}.values()],
    )
