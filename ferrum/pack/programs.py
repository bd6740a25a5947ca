"""What of a manifest a device needs to run the program of its steps: one place that says no to what this runtime cannot run."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from ferrum.errors import FerrumError
from ferrum.pack.schema import FORMAT_VERSION, STEP, Manifest, ProgramRecord, StateRecord
from ferrum.pack.step import INPUTS, OUTPUTS

_AGAIN = "compile it again"


class KvGroup(NamedTuple):
    """States whose blocks share their numbers: ``unit_bytes`` of all their layers for a block of ``unit`` tokens.

    ``window`` 0: a sequence keeps its blocks. The first group is of these; a model whose layers all have windows has it without
    layers. With ``checkpoint`` a group of slots: ``unit_bytes`` are those of a sequence, copied every so many tokens.
    """

    window: int
    unit: int
    layers: int
    unit_bytes: int
    checkpoint: int = 0

    def seen(self, tokens: float) -> float:
        """How many of ``tokens`` tokens a query behind them reads; a slot is read as a block is."""
        if self.checkpoint:
            return self.unit
        return min(tokens, self.window) if self.window else tokens


class StepProgram(NamedTuple):
    """The program, the groups of states that its sequences grow in, and the member that a device opens."""

    record: ProgramRecord
    groups: tuple[KvGroup, ...]
    entry: str


def step_program(manifest: Manifest, path: str, features: Collection[str] = ()) -> StepProgram:
    """Raises FerrumError for a pack of an older format, without the program, or that asks for what is reserved.

    ``features``: of this machine, which choose among variants of the code.
    """
    if manifest.format < FORMAT_VERSION:
        what = f"a pack of format {manifest.format} is listed, explained and verified, but no longer run"
        raise FerrumError("pack-version", what, path, _AGAIN)
    program = require_step(manifest, path)
    if (tuple(program.inputs), tuple(program.outputs)) != (INPUTS, OUTPUTS):
        raise FerrumError("pack-version", "the code takes other arrays in a step than this ferrum has", path, _AGAIN)
    for name, used in _reserved(manifest, program).items():
        if used:
            raise FerrumError("pack-too-new", f"the pack needs {name}, which this ferrum does not run", path, "update ferrum")
    code = next((c for c in manifest.code if set(c.features) <= set(features)), None)
    if code is None:
        lacking = ", ".join(manifest.code[-1].features) if manifest.code else "any code"
        raise FerrumError("wrong-machine", f"no variant of the code runs here: this machine lacks {lacking}", path, _AGAIN)
    return StepProgram(program, kv_groups(manifest, path), code.entry[STEP])


def require_step(manifest: Manifest, path: str = "") -> ProgramRecord:
    """The program of steps. Raises FerrumError when the pack is of something else than a language model."""
    program = manifest.program(STEP)
    if program is None:
        names = ", ".join(p.name for p in manifest.programs)
        what = f"the pack has no program {STEP!r}, only {names or 'none'}"
        raise FerrumError("pack-program", what, path, "use a pack of a language model")
    return program


def _reserved(manifest: Manifest, program: ProgramRecord) -> dict[str, bool]:
    """What the format can say and this runtime cannot do, in words."""
    return {
        "weights from outside": bool(manifest.external),
        "parts of a model on several devices": any(tensor.shard for tensor in manifest.tensors),
        "other packs beside it": any(link.required for link in manifest.links),
        "several programs in turn": bool(manifest.flow),
        "a launcher": bool(manifest.launcher),
        "whole sequences in one step": program.whole,
        "states of other kinds": any(state.kind == "fixed" for state in _states(manifest, program)),
        "states in other groups": not _numbered(_states(manifest, program)),
    }


def _numbered(states: list[StateRecord]) -> bool:
    """Whether paged states are in group 0 and windows and slots in others behind it, all with blocks of one size."""
    groups = {state.group for state in states} | {0}
    paged = all((state.kind == "paged") == (state.group == 0) for state in states)
    return paged and groups == set(range(len(groups))) and len({state.unit for state in states}) <= 1


def _states(manifest: Manifest, program: ProgramRecord) -> list[StateRecord]:
    return [state for state in manifest.states if state.name in program.states]


def kv_groups(manifest: Manifest, path: str = "") -> tuple[KvGroup, ...]:
    """The groups of blocks of the program of steps, by their numbers. Raises FerrumError when it keeps none."""
    found = [state for state in _states(manifest, require_step(manifest, path)) if state.kind != "fixed"]
    if not found:
        raise FerrumError("pack-program", f"the program {STEP!r} keeps no blocks", path, "use a pack of a language model")
    groups = [KvGroup(0, found[0].unit, 0, 0)]
    for number in sorted({state.group for state in found} | {0}):
        members = [state for state in found if state.group == number]
        sizes = sum(state.layers for state in members), sum(state.unit_bytes for state in members)
        if members:
            groups[number:] = [KvGroup(members[0].window, found[0].unit, *sizes, members[0].checkpoint)]
    return tuple(groups)
