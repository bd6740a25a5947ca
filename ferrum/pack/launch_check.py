"""What must hold of a launch table before anything runs by it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import msgspec

from ferrum.errors import FerrumError
from ferrum.pack.check import damaged
from ferrum.pack.launches import (
    HEADER,
    LAUNCHES_VERSION,
    ExternalArg,
    InputArg,
    IntArg,
    Launch,
    LaunchTable,
    LimitArg,
    OutputArg,
    SlotArg,
    StateArg,
    TableArg,
    Threads,
    WeightsArg,
    decode_table,
)
from ferrum.pack.programs import build_of, check_step, kv_groups
from ferrum.pack.reader import Pack
from ferrum.pack.schema import Manifest
from ferrum.pack.step import INPUTS, OUTPUTS

_MAX_THREADS = 1024
_SYMBOL = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}")


def read_table(pack: Pack, variant: str = "") -> LaunchTable:
    """The launch table of a variant of the code (empty: the first), every number checked. Raises FerrumError naming the field."""
    check_step(pack.manifest, pack.path.name)
    name = build_of(pack.manifest, variant, pack.path.name).launches
    where = f"{pack.path.name}: {name}"
    try:
        table = decode_table(pack.member(name))
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise damaged(f"not a launch table: {error}", where) from None
    if table.version != LAUNCHES_VERSION:
        what = f"the launch table is of version {table.version} and this ferrum reads {LAUNCHES_VERSION}"
        raise FerrumError("pack-version", what, where, "compile the pack again")
    if table.contract != pack.manifest.contract:
        raise FerrumError("contract-mismatch", "code and weights do not belong together", where, "compile the pack again")
    if table.code not in pack:
        raise damaged(f"the member {table.code[:80]!r} is missing", f"{where}: code")
    for field, problem in _problems(table, pack.manifest):
        raise damaged(problem, f"{where}: {field}")
    return table


def _problems(table: LaunchTable, manifest: Manifest) -> Iterator[tuple[str, str]]:
    """What is wrong with the table: (field, problem)."""
    if not table.launches or not 0 <= table.logits_slot < len(table.slots):
        yield "logits_slot", f"{table.logits_slot} of {len(table.slots)} slots"
        return
    terms = [term for slot in table.slots for term in slot.bytes]
    terms += [term for launch in table.launches for axis in launch.work for term in axis]
    for term in terms:
        if not 1 <= term.per < 1 << 31 or not 0 <= term.times < 1 << 40:
            yield "term", f"ceil({term.rows} / {term.per}) * {term.times} is out of range"
    for index, launch in enumerate(table.launches):
        if problem := _launch_problem(launch, table, manifest):
            yield f"launches[{index}]", problem


def _launch_problem(launch: Launch, table: LaunchTable, manifest: Manifest) -> str:
    bad = (f"args[{i}]: {launch.args[i]} is out of range" for i in _bad_args(launch, table, manifest))
    return _shape_problem(launch, manifest) or next(bad, "")


def _shape_problem(launch: Launch, manifest: Manifest) -> str:
    if not _SYMBOL.fullmatch(launch.symbol):
        return "the symbol is not a plain name"
    on = launch.on
    if launch.kind != "kernel":
        return f"no device runs a launch of the kind {launch.kind}"
    if isinstance(on, Threads) != (manifest.target.device == "cpu"):
        return f"{manifest.target.device} does not run it"
    if isinstance(on, Threads):
        return "" if len(launch.work) == 1 and all(0 <= i < len(launch.args) for i in on.private) else "work or private rows"
    if len(launch.work) != 3 or len(on.block) != 3 or min(on.block) < 1 or math.prod(on.block) > _MAX_THREADS:
        return f"a grid of {len(launch.work)} axes and a block of {on.block[:3]}"
    if not 0 <= on.shared <= 1 << 20:
        return f"{on.shared} bytes of shared memory"
    return ""


def _bad_args(launch: Launch, table: LaunchTable, manifest: Manifest) -> Iterator[int]:
    inputs, outputs = {a.name for a in INPUTS} | set(HEADER), {a.name for a in OUTPUTS}
    groups = kv_groups(manifest)
    for index, arg in enumerate(launch.args):
        match arg:
            case WeightsArg():
                good = 0 <= arg.offset < max(manifest.weights_bytes, 1)
            case StateArg():
                good = 0 <= arg.group < len(groups) and 0 <= arg.offset < groups[arg.group].unit_bytes
            case TableArg():
                good = 0 <= arg.group < len(groups)
            case SlotArg():
                good = 0 <= arg.slot < len(table.slots)
            case InputArg():
                good = arg.name in inputs
            case OutputArg():
                good = arg.name in outputs
            case IntArg():
                good = -(1 << 31) <= arg.value < 1 << 31
            case LimitArg():  # rows of the block tables: nothing else is multiplied
                good = arg.times == (len(groups) if arg.rows == "blocks_per_seq" else 1)
            case ExternalArg():  # nothing can be bound yet
                good = False
        if not good:
            yield index
