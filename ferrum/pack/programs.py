"""What of a manifest a device needs to run the program of its steps: one place that says no to what this runtime cannot run."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import msgspec

from ferrum.errors import FerrumError
from ferrum.pack.schema import FORMAT_VERSION, STEP, Manifest, ProgramRecord, StateRecord
from ferrum.pack.step import INPUTS, OUTPUTS

_AGAIN = "compile it again"


class StepProgram(NamedTuple):
    """The program, the paged state that its sequences grow in, and the member that a device opens."""

    record: ProgramRecord
    kv: StateRecord
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
    return StepProgram(program, kv_state(manifest, path), code.entry[STEP])


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
        "states of other kinds": any(state.kind != "paged" or state.group for state in _states(manifest, program)),
    }


def _states(manifest: Manifest, program: ProgramRecord) -> list[StateRecord]:
    return [state for state in manifest.states if state.name in program.states]


def kv_state(manifest: Manifest, path: str = "") -> StateRecord:
    """The paged states of the program of steps as one: their layers and the bytes of a block that spans them all.

    Raises FerrumError when it keeps none.
    """
    found = [state for state in _states(manifest, require_step(manifest, path)) if state.kind == "paged"]
    if not found:
        raise FerrumError("pack-program", f"the program {STEP!r} keeps no paged state", path, "use a pack of a language model")
    layers, nbytes = sum(state.layers for state in found), sum(state.unit_bytes for state in found)
    return msgspec.structs.replace(found[0], layers=layers, unit_bytes=nbytes)
