"""Every distinct kernel of a GPU pack in emulation against its reference, with sizes reduced where the shape allows."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import numpy as np

from ferrum.codegen.kernels.cases import Bench
from ferrum.codegen.kernels.gpu import GpuKernel
from ferrum.codegen.render import common_source, kernel_source, render_kernels
from ferrum.codegen.target import GpuTarget
from ferrum.devices.emulate import SCHEDULES, build
from ferrum.errors import FerrumError
from ferrum.pack.proof import KernelProof

# The fastest order, and the one that finds most: copies land late, other blocks see stores late, threads run backwards.
_SCHEDULES = (SCHEDULES[0], SCHEDULES[2])


Known = dict[tuple[str, str], dict[str, float]]


def prove_kernels(kernels: Iterable[GpuKernel], target: GpuTarget, known: Known) -> list[KernelProof]:
    """A record for each kernel. ``known`` (its source and what it stands on → errors) saves what was tried before and is added
    to: targets of one kind have most kernels in common, to the letter.

    Raises FerrumError when a kernel and its reference differ, or when a kernel does what a device would not survive.
    """
    wanted = {kernel.symbol: kernel.reduced() for kernel in kernels}
    sources = {k.symbol: (common_source(target), kernel_source(k, target)) for k in wanted.values()}
    new = {k.symbol: k for k in wanted.values() if sources[k.symbol] not in known}
    if new:
        module = build(render_kernels("proof", list(new.values()), target, ""), "cuda" if target.device == "cuda" else "metal")
        for kernel in new.values():
            errors = {}
            for schedule in _SCHEDULES:
                random = np.random.default_rng(zlib.crc32(kernel.symbol.encode()))
                errors[str(schedule)] = found = Bench(module, schedule).error(kernel, kernel.case(random))
                if not found <= kernel.tolerance:
                    raise _differs(kernel, found, str(schedule))
            known[sources[kernel.symbol]] = errors
    return [
        KernelProof(
            symbol=symbol,
            spec=kernel.stem,
            tried=kernel.symbol,
            errors=known[sources[kernel.symbol]],
            tolerance=kernel.tolerance,
        )
        for symbol, kernel in sorted(wanted.items())
    ]


def _differs(kernel: GpuKernel, found: float, schedule: str) -> FerrumError:
    return FerrumError(
        "proof-failed",
        f"{kernel.symbol} and its reference differ by {found:.2e} (allowed {kernel.tolerance:.0e}; {schedule})",
        "stage prove",
        "this is a fault of ferrum: report it with the model's config.json; --no-prove skips the check",
    )
