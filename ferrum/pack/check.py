"""What must hold of a manifest beyond its types. The writer asks before it writes, the reader before it uses anything."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import msgspec

from ferrum.errors import FerrumError
from ferrum.pack.archive import MAX_MEMBERS
from ferrum.pack.names import is_label, is_member_name, is_sha256, is_tensor_name
from ferrum.pack.schema import (
    FORMAT_VERSION,
    KNOWN_SECTIONS,
    MANIFEST_NAME,
    MEMBER_ALIGNMENT,
    TENSOR_ALIGNMENT,
    Manifest,
    TensorRecord,
)

MAX_ELEMENTS = 1 << 44
MAX_DIMS = 8
MAX_BYTES = 1 << 48  # of anything; sums of a few stay far from 2**63
MAX_TENSORS = 1 << 20

# section -> the member it needs; a name ending in "/" stands for any member below
SECTION_MEMBERS = {
    "code": "code/",
    "graph": "graph.txt",
    "plan": "plan.json",
    "weights": "weights",
    "text": "tokenizer.json",
    "selftest": "selftest.json",
}

_SMALL = 1 << 31
_RANGES = {
    "model.num_parameters": (0, MAX_ELEMENTS),
    "model.vocab_size": (1, _SMALL - 1),
    "model.max_model_len": (1, _SMALL - 1),
    "kv.num_layers": (0, 1 << 16),
    "kv.num_kv_heads": (0, 1 << 16),
    "kv.head_dim": (0, 1 << 16),
    "kv.block_size": (1, 1 << 16),
    "kv.bytes_per_block": (0, 1 << 40),
    "memory.weights": (0, MAX_BYTES),
    "memory.fixed": (0, MAX_BYTES),
    "memory.per_token": (0, 1 << 40),
    "memory.per_sample": (0, 1 << 40),
    "memory.per_thread": (0, 1 << 40),
}
_LABELS = (
    "model.name", "model.family", "model.source", "model.revision", "model.licence", "model.quant",
    "target.name", "target.device", "target.arch", "kv.dtype",
)  # fmt: skip
_BITS = {"f32": 32, "f16": 16, "bf16": 16, "fp8": 8, "int8": 8, "int4": 4}  # least bits per element, by the format's stem


class _Versions(msgspec.Struct):
    """The fields that every version of the format has; the others are not looked at."""

    format: int
    reader_min: int
    required: list[str]


def contract_hash(tensors: list[TensorRecord]) -> str:
    """SHA-256 (hex) over ``[[name, shape, format, layout], ...]`` as JSON without spaces, in the manifest's order."""
    rows = [[tensor.name, tensor.shape, tensor.format, tensor.layout] for tensor in tensors]
    return hashlib.sha256(msgspec.json.encode(rows)).hexdigest()


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
        manifest = msgspec.json.decode(data, type=Manifest)
        canonical = msgspec.json.encode(manifest, order="sorted")
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise damaged(f"not a manifest of format {FORMAT_VERSION}: {error}", where) from None
    if data[: len(canonical)] != canonical or data[len(canonical) :].strip(b" "):
        raise damaged("the manifest is not canonical JSON followed by spaces", where)
    return manifest


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
    unknown = [section for section in versions.required if section not in KNOWN_SECTIONS]
    if unknown:
        raise FerrumError(
            "pack-section-unknown",
            f"the pack requires the unknown section {unknown[0][:80]!r}",
            f"{where}: required",
            "update ferrum",
        )


def check_manifest(manifest: Manifest, path: str) -> None:
    """Ranges, names, sections, members, tensors and contract of ``manifest``; FerrumError names the field."""
    where = f"{path}: {MANIFEST_NAME}"
    for field, (low, high) in _RANGES.items():
        value = _field(manifest, field)
        if not low <= value <= high:
            raise damaged(f"{value} is not between {low} and {high}", f"{where}: {field}")
    for field in _LABELS:
        if not is_label(_field(manifest, field)):
            raise damaged("the text is too long or not printable", f"{where}: {field}")
    if any(not is_label(feature) for feature in manifest.target.features):
        raise damaged("the text is too long or not printable", f"{where}: target.features")
    for token in (manifest.text.bos_token_id, *manifest.text.eos_token_ids):
        if token is not None and not 0 <= token < manifest.model.vocab_size:
            raise damaged(f"token id {token} is not below vocab_size", f"{where}: text")
    if any(not math.isfinite(value) for value in manifest.text.generation.values()):
        raise damaged("a value is not finite", f"{where}: text.generation")
    _check_members(manifest, where)
    _check_sections(manifest, where)
    _check_tensors(manifest, where)


def _field(manifest: Manifest, path: str) -> Any:
    record, _, name = path.partition(".")
    return getattr(getattr(manifest, record), name)


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
        if not 0 <= member.nbytes <= MAX_BYTES:
            raise damaged(f"the size {member.nbytes} is out of range", f"{here}.nbytes")
        if not 0 < member.offset <= MAX_BYTES or member.offset % MEMBER_ALIGNMENT:
            raise damaged(f"the offset {member.offset} is out of range or not a multiple of {MEMBER_ALIGNMENT}", f"{here}.offset")
        seen.add(member.name)


def _check_sections(manifest: Manifest, where: str) -> None:
    names = [member.name for member in manifest.members]
    if len(set(manifest.required)) != len(manifest.required):
        raise damaged("a section is named twice", f"{where}: required")
    for section in manifest.required:
        needed = SECTION_MEMBERS[section]
        if not any(name == needed or (needed.endswith("/") and name.startswith(needed)) for name in names):
            raise damaged(f"the section {section!r} is required and its member {needed!r} is missing", f"{where}: required")
    if manifest.selftest != (SECTION_MEMBERS["selftest"] in names):
        raise damaged("it does not agree with the members", f"{where}: selftest")


def _check_tensors(manifest: Manifest, where: str) -> None:
    total = next((member.nbytes for member in manifest.members if member.name == "weights"), 0)
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
    if manifest.contract != contract_hash(manifest.tensors):
        raise damaged("it does not fit the names, shapes, formats and layouts of the tensors", f"{where}: contract")


def _check_tensor(tensor: TensorRecord, total: int, here: str) -> None:
    if not (is_label(tensor.format) and is_label(tensor.layout)):
        raise damaged("the text is too long or not printable", f"{here}: format, layout")
    if len(tensor.shape) > MAX_DIMS or any(not 0 < dim <= MAX_ELEMENTS for dim in tensor.shape):
        raise damaged(f"bad dimensions {tensor.shape[:MAX_DIMS]}", f"{here}: shape")
    elements = math.prod(tensor.shape)  # at most MAX_DIMS factors, each bounded
    if elements > MAX_ELEMENTS:
        raise damaged(f"{elements} elements are too many", f"{here}: shape")
    if not 0 <= tensor.offset <= total or tensor.offset % TENSOR_ALIGNMENT:
        raise damaged(f"the offset {tensor.offset} is out of range or not a multiple of {TENSOR_ALIGNMENT}", f"{here}: offset")
    if not 0 < tensor.nbytes <= total - tensor.offset:
        raise damaged(f"{tensor.nbytes} bytes at offset {tensor.offset} do not fit into weights ({total})", f"{here}: nbytes")
    bits = next((b for stem, b in _BITS.items() if tensor.format.startswith(stem)), 1)
    if elements * bits > tensor.nbytes * 8:
        raise damaged(f"{tensor.nbytes} bytes cannot hold {elements} elements of {tensor.format}", f"{here}: nbytes")
