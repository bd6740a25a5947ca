"""What must hold of a manifest beyond its types. The writer asks before it writes, the reader before it uses anything."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator

import msgspec

from ferrum.errors import FerrumError
from ferrum.pack.archive import MAX_MEMBERS
from ferrum.pack.format1 import SECTIONS_1, Manifest1, contract_hash_1, upgrade
from ferrum.pack.names import is_label, is_member_name, is_sha256, is_tensor_name
from ferrum.pack.schema import (
    FORMAT_VERSION,
    KNOWN_SECTIONS,
    MANIFEST_NAME,
    MEMBER_ALIGNMENT,
    TENSOR_ALIGNMENT,
    WEIGHTS_NAME,
    BuildRecord,
    Manifest,
    ProgramRecord,
    StateRecord,
    TensorRecord,
)

MAX_ELEMENTS = 1 << 44
MAX_DIMS = 8
MAX_TENSORS = 1 << 20
TOKENIZER_NAME = "tokenizer.json"

_BITS = {"f32": 32, "f16": 16, "bf16": 16, "fp8": 8, "int8": 8, "int4": 4}  # least bits per element, by the format's stem


class _Versions(msgspec.Struct):
    """The fields that every version of the format has; the others are not looked at."""

    format: int
    reader_min: int
    required: list[str]


def contract_hash(tensors: list[TensorRecord], states: list[StateRecord], vocab_size: int, max_model_len: int) -> str:
    """SHA-256 (hex) of all that the code was compiled for: these four as one canonical JSON object.

    The code repeats it. So a number of these that was changed later never reaches code that was made for another.
    """
    record = {"tensors": tensors, "states": states, "vocab_size": vocab_size, "max_model_len": max_model_len}
    return hashlib.sha256(msgspec.json.encode(record, order="sorted")).hexdigest()


def damaged(what: str, where: str) -> FerrumError:
    """The error of a pack whose bytes or records contradict each other."""
    return FerrumError("pack-damaged", what, where, "copy or build the pack again")


def decode_manifest(data: bytes, where: str) -> Manifest:
    """The manifest in ``data`` (canonical JSON, padded with spaces), checked. Raises FerrumError naming the field."""
    where = f"{where}: {MANIFEST_NAME}"
    try:
        versions = msgspec.json.decode(data, type=_Versions)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise damaged(f"not a manifest: {error}", where) from None
    _check_versions(versions, where)
    try:
        manifest: Manifest | Manifest1
        if versions.format >= FORMAT_VERSION:
            manifest = msgspec.json.decode(data, type=Manifest)
        else:
            manifest = msgspec.json.decode(data, type=Manifest1)
        canonical = msgspec.json.encode(manifest, order="sorted")
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise damaged(f"not a manifest of format {versions.format}: {error}", where) from None
    if data[: len(canonical)] != canonical or data[len(canonical) :].strip(b" "):
        raise damaged("the manifest is not canonical JSON followed by spaces", where)
    return upgrade(manifest) if isinstance(manifest, Manifest1) else manifest


def _check_versions(versions: _Versions, where: str) -> None:
    if versions.reader_min > FORMAT_VERSION:
        raise FerrumError(
            "pack-too-new",
            f"the pack needs a reader of format {versions.reader_min}, this one reads up to {FORMAT_VERSION}",
            f"{where}: reader_min",
            "update ferrum",
        )
    if not 1 <= versions.reader_min <= versions.format:
        raise damaged(
            f"reader_min {versions.reader_min} and format {versions.format} contradict each other", f"{where}: reader_min"
        )
    known = KNOWN_SECTIONS if versions.format >= FORMAT_VERSION else SECTIONS_1
    unknown = [section for section in versions.required if section not in known]
    if unknown:
        raise FerrumError(
            "pack-section-unknown",
            f"the pack requires the unknown section {unknown[0][:80]!r}",
            f"{where}: required",
            "update ferrum",
        )


def check_manifest(manifest: Manifest, path: str) -> None:
    """Names, members, programs, states, tensors and contract of ``manifest``; FerrumError names the field.

    Bounds of single numbers are those of the types and are checked as well: the writer's manifest was never decoded.
    """
    where = f"{path}: {MANIFEST_NAME}"
    try:
        msgspec.convert(msgspec.to_builtins(manifest), Manifest)
    except msgspec.ValidationError as error:
        raise damaged(str(error), where) from None
    for field, text in _labels(manifest):
        if not is_label(text):
            raise damaged("the text is too long or not printable", f"{where}: {field}")
    for token in (manifest.text.bos_token_id, *manifest.text.eos_token_ids):
        if token is not None and not 0 <= token < manifest.model.vocab_size:
            raise damaged(f"token id {token} is not below vocab_size", f"{where}: text")
    if not all(name.isidentifier() and name.endswith("_token") for name in manifest.text.special_tokens):
        raise damaged("a name does not end with _token", f"{where}: text.special_tokens")
    if any(not math.isfinite(value) for value in manifest.text.generation.values()):
        raise damaged("a value is not finite", f"{where}: text.generation")
    _check_members(manifest, where)
    _check_sections(manifest, where)
    _check_states(manifest, where)
    _check_programs(manifest, where)
    _check_code(manifest, where)
    _check_tensors(manifest, where)


def _labels(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """What is shown to people: (field, text)."""
    for name in ("name", "family", "source", "revision", "licence", "quant"):
        yield f"model.{name}", getattr(manifest.model, name)
    for name in ("name", "device", "arch"):
        yield f"target.{name}", getattr(manifest.target, name)
    yield from (("target.features", feature) for feature in manifest.target.features)
    for state in manifest.states:
        yield from (("states", text) for text in (state.name, *(a.name for a in state.arrays), *(a.dtype for a in state.arrays)))
    yield from (("programs", program.name) for program in manifest.programs)
    for code in manifest.code:
        yield from (("code", text) for text in (code.name, code.toolchain, *code.features))


def _check_members(manifest: Manifest, where: str) -> None:
    if len(manifest.members) >= MAX_MEMBERS:
        raise damaged(f"{len(manifest.members)} members are too many", f"{where}: members")
    seen = {MANIFEST_NAME}
    for index, member in enumerate(manifest.members):
        here = f"{where}: members[{index}]"
        if not is_member_name(member.name):
            raise damaged(f"{member.name[:80]!r} is not a member name", f"{here}.name")
        if member.name in seen:
            raise damaged(f"the name {member.name!r} is there twice", f"{here}.name")
        if not is_sha256(member.sha256):
            raise damaged("not a SHA-256 in lower-case hex", f"{here}.sha256")
        if not member.offset or member.offset % MEMBER_ALIGNMENT:
            raise damaged(f"the offset {member.offset} is 0 or not a multiple of {MEMBER_ALIGNMENT}", f"{here}.offset")
        seen.add(member.name)


def _check_sections(manifest: Manifest, where: str) -> None:
    there = {member.name for member in manifest.members}
    filled = {
        "weights": WEIGHTS_NAME in there,
        "programs": bool(manifest.programs),
        "code": bool(manifest.code),
        "text": TOKENIZER_NAME in there,
    }
    if len(set(manifest.required)) != len(manifest.required):
        raise damaged("a section is named twice", f"{where}: required")
    for section in manifest.required:
        if not filled[section]:
            raise damaged(f"the section {section!r} is required and missing", f"{where}: required")


def _check_states(manifest: Manifest, where: str) -> None:
    groups: dict[int, tuple[str, int, int]] = {}
    for index, state in enumerate(manifest.states):
        here = f"{where}: states[{index}]"
        shape = (state.kind, state.unit, state.window)
        if groups.setdefault(state.group, shape) != shape:
            raise damaged("states of one group differ in kind, unit or window", f"{here}.group")
        if (state.kind == "window") != (state.window > 0):
            raise damaged(f"a window of {state.window} tokens in a state of kind {state.kind}", f"{here}.window")
    if len({state.name for state in manifest.states}) != len(manifest.states):
        raise damaged("a state is named twice", f"{where}: states")


def _check_programs(manifest: Manifest, where: str) -> None:
    there, states = {member.name for member in manifest.members}, {state.name for state in manifest.states}
    for index, program in enumerate(manifest.programs):
        here = f"{where}: programs[{index}]"
        _check_named(program, ("graph",), ("constants", "selftest"), there, here)
        if not set(program.states) <= states:
            raise damaged("a state that the pack does not describe", f"{here}.states")
    if len({program.name for program in manifest.programs}) != len(manifest.programs):
        raise damaged("a program is named twice", f"{where}: programs")


def _check_named(
    record: ProgramRecord | BuildRecord, needed: tuple[str, ...], others: tuple[str, ...], there: set[str], here: str
) -> None:
    """The members that a record names; ``others`` may be empty."""
    for field in (*needed, *others):
        name = getattr(record, field)
        if name not in there and (name or field in needed):
            raise damaged(f"the member {name[:80]!r} is missing", f"{here}.{field}")


def _check_code(manifest: Manifest, where: str) -> None:
    there, programs = {member.name for member in manifest.members}, {program.name: program for program in manifest.programs}
    for index, code in enumerate(manifest.code):
        here = f"{where}: code[{index}]"
        if not {*(build.entry for build in code.programs.values())} <= set(code.members) <= there:
            raise damaged("it names a member that is missing", f"{here}.members")
        if set(code.programs) != set(programs):
            raise damaged("it must have an entry for each program", f"{here}.programs")
        for name, build in code.programs.items():
            _check_named(build, ("entry", "plan"), ("launches", "layers"), there, f"{here}.programs.{name}")
            if build.layers and not programs[name].selftest:
                raise damaged("sketches of layers without the prompts they are of", f"{here}.programs.{name}.layers")
    if len({code.name for code in manifest.code}) != len(manifest.code):
        raise damaged("a variant is named twice", f"{where}: code")


def _check_tensors(manifest: Manifest, where: str) -> None:
    total = next((member.nbytes for member in manifest.members if member.name == WEIGHTS_NAME), 0)
    if len(manifest.tensors) > MAX_TENSORS:
        raise damaged(f"{len(manifest.tensors)} tensors are too many", f"{where}: tensors")
    seen: set[str] = set()
    for index, tensor in enumerate(manifest.tensors):
        if tensor.name in seen or not is_tensor_name(tensor.name):
            raise damaged(f"the name {tensor.name[:80]!r} is bad or there twice", f"{where}: tensors[{index}].name")
        seen.add(tensor.name)
        _check_tensor(tensor, total, f"{where}: tensors[{index}] {tensor.name[:80]}")
    end = 0
    for tensor in sorted(manifest.tensors, key=lambda t: t.offset):
        if tensor.offset < end:
            raise damaged("it overlaps the tensor before it", f"{where}: tensor {tensor.name[:80]}: offset")
        end = tensor.offset + tensor.nbytes
    model = manifest.model
    expected = contract_hash(manifest.tensors, manifest.states, model.vocab_size, model.max_model_len)
    if manifest.contract != (contract_hash_1(manifest.tensors) if manifest.format < FORMAT_VERSION else expected):
        raise damaged("it does not fit tensors, states, vocab_size and max_model_len", f"{where}: contract")


def _check_tensor(tensor: TensorRecord, total: int, here: str) -> None:
    if not (is_label(tensor.format) and is_label(tensor.layout)):
        raise damaged("the text is too long or not printable", f"{here}: format, layout")
    if len(tensor.shape) > MAX_DIMS or any(not 0 < dim <= MAX_ELEMENTS for dim in tensor.shape):
        raise damaged(f"bad dimensions {tensor.shape[:MAX_DIMS]}", f"{here}: shape")
    elements = math.prod(tensor.shape)  # at most MAX_DIMS factors, each bounded
    if elements > MAX_ELEMENTS:
        raise damaged(f"{elements} elements are too many", f"{here}: shape")
    if tensor.offset > total or tensor.offset % TENSOR_ALIGNMENT:
        raise damaged(f"the offset {tensor.offset} is out of range or not a multiple of {TENSOR_ALIGNMENT}", f"{here}: offset")
    if not 0 < tensor.nbytes <= total - tensor.offset:
        raise damaged(f"{tensor.nbytes} bytes at offset {tensor.offset} do not fit into weights ({total})", f"{here}: nbytes")
    bits = next((b for stem, b in _BITS.items() if tensor.format.startswith(stem)), 1)
    if elements * bits > tensor.nbytes * 8:
        raise damaged(f"{tensor.nbytes} bytes cannot hold {elements} elements of {tensor.format}", f"{here}: nbytes")
