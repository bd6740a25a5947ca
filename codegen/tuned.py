"""How products on CPUs are cut: what the tuner chose, else what is recorded for a target, else what fits the registers.

Records are of named targets, so that builds stay byte-identical: by target and kind of format. ``ferrum compile --tune`` measures
on the machine at hand instead, and shows what would belong here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ferrum.codegen.kernels.linear.cpu import Blocking
from ferrum.codegen.layouts import Format
from ferrum.codegen.layouts.activations import ActFormat
from ferrum.codegen.target import Target

RECORDED: Mapping[str, Mapping[str, Blocking]] = {}


def blocking(target: Target, fmt: Format, tuned: Mapping[str, Blocking], act: ActFormat | None = None) -> Blocking:
    """What was tuned for this compile, else what is recorded for the target, else as many sums as fit beside the operands.

    Integer sums are scaled and added up in memory. bfloat16 weights that are widened are shared by more rows. Integers that meet
    float activations ``act`` lie as ever, but their sums are floats'.
    """
    if fmt.group and act is not None and act.kind == "f32":
        return replace(blocking(target, fmt, tuned), rows=blocking(target, Format("f32"), {}).rows)
    found = tuned.get(fmt.name) or RECORDED.get(target.name, {}).get(fmt.kind)
    if found:
        return found
    if target.registers >= 32:
        if fmt.group:
            return Blocking(6, 4, 8)
        return Blocking(12, 2) if fmt.kind == "bf16" and not target.has_bf16_dot else Blocking(6, 4)
    return Blocking(2, 2) if fmt.group else Blocking(4, 2)
