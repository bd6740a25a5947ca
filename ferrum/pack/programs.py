"""What of a manifest a device needs to run the program of requests: one place that says no to what this runtime cannot run."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from ferrum.errors import FerrumError
from ferrum.pack.schema import (
    ENCODE,
    FORMAT_VERSION,
    STEP,
    BuildRecord,
    CodeRecord,
    Manifest,
    ProgramRecord,
    StateRecord,
)
from ferrum.pack.step import ENCODE_INPUTS, INPUTS, OUTPUTS, embedding_array

_AGAIN = "compile it again"
_MAX_WIDTH = 1 << 20
_NOTHING_KEPT = 16  # tokens of a block that takes no memory


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
    """The program, the groups of states that its sequences grow in, and the variant of the code that computes it.

    ``width``: numbers of a row that it gives, logits of the vocabulary or an embedding.
    """

    record: ProgramRecord
    groups: tuple[KvGroup, ...]
    code: CodeRecord
    width: int

    @property
    def build(self) -> BuildRecord:
        return self.code.programs[self.record.name]


def step_program(manifest: Manifest, path: str, features: Collection[str] = (), variant: str = "") -> StepProgram:
    """The program that requests run. Raises FerrumError for a pack of an older format, without one, or that asks for what is
    reserved, and where no variant of the code runs.

    ``features``: of this machine, which choose among variants of the code, unless one is wanted by its name.
    """
    program = check_step(manifest, path)
    code = choose_code(manifest, path, features, variant)
    return StepProgram(program, kv_groups(manifest, path), code, row_width(manifest, program))


def check_step(manifest: Manifest, path: str) -> ProgramRecord:
    """The program that requests run, if this runtime can run it. Raises FerrumError."""
    if manifest.format < FORMAT_VERSION:
        what = f"a pack of format {manifest.format} is listed, explained and verified, but no longer run"
        raise FerrumError("pack-version", what, path, _AGAIN)
    program = require_program(manifest, path)
    if not _known_arrays(program):
        raise FerrumError("pack-version", "the code takes other arrays in a step than this ferrum has", path, _AGAIN)
    for name, used in _reserved(manifest, program).items():
        if used:
            raise FerrumError("pack-too-new", f"the pack needs {name}, which this ferrum does not run", path, "update ferrum")
    return program


def row_width(manifest: Manifest, program: ProgramRecord | None = None) -> int:
    """Numbers of a row that the program (of requests, if none is named) gives: logits, or an embedding."""
    program = program or require_program(manifest)
    made = program.outputs if program.name == ENCODE else []
    return made[0].width if made else manifest.model.vocab_size


def _known_arrays(program: ProgramRecord) -> bool:
    given, made = tuple(program.inputs), tuple(program.outputs)
    if program.name == STEP:
        return (given, made) == (INPUTS, OUTPUTS)
    width = made[0].width if len(made) == 1 else 0
    return 0 < width <= _MAX_WIDTH and (given, made) == (ENCODE_INPUTS, (embedding_array(width),))


def choose_code(manifest: Manifest, path: str, features: Collection[str], variant: str = "") -> CodeRecord:
    """The first variant of the code whose features a machine has, or the one of this name. Raises FerrumError where none runs."""
    candidates = [code_named(manifest, variant, path)] if variant else manifest.code
    found = next((code for code in candidates if set(code.features) <= set(features)), None)
    if found is not None:
        return found
    missing = [feature for feature in candidates[-1].features if feature not in features] if candidates else ["any code"]
    which = f"the variant {variant} does not run here" if variant else "no variant of the code runs here"
    step = "choose another variant, or none" if variant else _AGAIN
    raise FerrumError("wrong-machine", f"{which}: this machine lacks {', '.join(missing)}", path, step)


def code_named(manifest: Manifest, variant: str, path: str = "") -> CodeRecord:
    """A variant of the code by its name; the first without one. Raises FerrumError where there is none."""
    found = next((code for code in manifest.code if variant in ("", code.name)), None)
    if found is None:
        names = ", ".join(code.name for code in manifest.code) or "none"
        raise FerrumError("variant-unknown", f"the pack has no variant {variant!r} of its code", path, f"variants: {names}")
    return found


def build_of(manifest: Manifest, variant: str = "", path: str = "") -> BuildRecord:
    """How a variant of the code (empty: the first) computes the program that requests run. Raises FerrumError without one."""
    return code_named(manifest, variant, path).programs[require_program(manifest, path).name]


def require_step(manifest: Manifest, path: str = "") -> ProgramRecord:
    """The program of steps. Raises FerrumError when the pack is of something else than a language model."""
    return _required(manifest, STEP, path, "use a pack of a language model")


def require_encode(manifest: Manifest, path: str = "") -> ProgramRecord:
    """The program of embeddings. Raises FerrumError when the pack has none."""
    return _required(manifest, ENCODE, path, "use a pack of a model that embeds")


def require_program(manifest: Manifest, path: str = "") -> ProgramRecord:
    """The program that requests run."""
    return manifest.program() or require_step(manifest, path)


def _required(manifest: Manifest, name: str, path: str, step: str) -> ProgramRecord:
    program = manifest.program(name)
    if program is None:
        names = ", ".join(p.name for p in manifest.programs)
        raise FerrumError("pack-program", f"the pack has no program {name!r}, only {names or 'none'}", path, step)
    return program


def _reserved(manifest: Manifest, program: ProgramRecord) -> dict[str, bool]:
    """What the format can say and this runtime cannot do, in words."""
    return {
        "weights from outside": bool(manifest.external),
        "parts of a model on several devices": any(tensor.shard for tensor in manifest.tensors),
        "other packs beside it": any(link.required for link in manifest.links),
        "several programs in turn": bool(manifest.flow),
        "a launcher": bool(manifest.launcher),
        "whole sequences in one step": program.whole and program.name != ENCODE,
        "parts of sequences to encode": program.name == ENCODE and not program.whole,
        "states of an encoder": program.name == ENCODE and bool(program.states),
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
    """The groups of blocks of the program that requests run, by their numbers; an encoder's take no memory. Raises FerrumError
    when steps keep none."""
    program = require_program(manifest, path)
    if program.name == ENCODE:
        return (KvGroup(0, _NOTHING_KEPT, 0, 0),)
    found = [state for state in _states(manifest, program) if state.kind != "fixed"]
    if not found:
        raise FerrumError("pack-program", f"the program {STEP!r} keeps no blocks", path, "use a pack of a language model")
    groups = [KvGroup(0, found[0].unit, 0, 0)]
    for number in sorted({state.group for state in found} | {0}):
        members = [state for state in found if state.group == number]
        sizes = sum(state.layers for state in members), sum(state.unit_bytes for state in members)
        if members:
            groups[number:] = [KvGroup(members[0].window, found[0].unit, *sizes, members[0].checkpoint)]
    return tuple(groups)
