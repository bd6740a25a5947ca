"""How products on CPUs are cut: what the tuner chose, else what is recorded for a target, else what fits the registers.

Products of many rows go by tiles where a target has them: from so many rows on that their start is paid for. Sums of bytes are
whole numbers, so both ways give the same bits; those of bfloat16 are not, so all of them take tiles.

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
# Of bytes: a careful guess until it is measured; tiles and vectors meet somewhere between 2 and 8 rows.
AMX_ROWS_INTEGERS, AMX_ROWS_BF16 = 8, 1


def blocking(target: Target, fmt: Format, tuned: Mapping[str, Blocking], act: ActFormat | None = None) -> Blocking:
    """What was tuned for this compile, else what is recorded for the target, else as many sums as fit beside the operands.

    Integer sums are scaled and added up in memory. bfloat16 weights that are widened are shared by more rows. Integers that meet
    float activations ``act`` lie as ever, but their sums are floats'.
    """
    if act is not None and act.kind == "f32":
        block = replace(blocking(target, fmt, tuned), amx_rows=0)
        return replace(block, rows=blocking(target, Format("f32"), {}).rows) if fmt.group else block
    found = tuned.get(fmt.name) or RECORDED.get(target.name, {}).get(fmt.kind)
    if found:
        return found
    if target.registers >= 32:
        tiles = amx_rows(target, fmt)
        if fmt.group:
            return Blocking(6, 4, 8, tiles)
        return Blocking(12, 2) if fmt.kind == "bf16" and not target.rounds_to_bf16 else Blocking(6, 4, amx_rows=tiles)
    return Blocking(2, 2) if fmt.group else Blocking(4, 2)


def amx_rows(target: Target, fmt: Format) -> int:
    """Rows from which products with weights of a format go by tiles; 0: never.

    Whole scales that multiply the sums of groups of 16 or 32 leave tiles a half or a quarter of their K, and as much work behind
    them as the sums themselves were.
    """
    if not target.amx or fmt.kind == "f32" or fmt.stepped:
        return 0
    return AMX_ROWS_INTEGERS if fmt.group else AMX_ROWS_BF16
