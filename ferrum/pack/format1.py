"""Manifests of format 1, which had one program, one cache and one variant of its code: read, and turned into format 2.

Such packs are listed, explained and verified. Their code is not run: it takes other records.
"""

from __future__ import annotations

import hashlib

import msgspec

from ferrum.pack.launches import LAUNCHES_NAME
from ferrum.pack.schema import (
    STEP,
    BuildRecord,
    CodeRecord,
    KernelRecord,
    Manifest,
    MemberRecord,
    MemoryRecord,
    ModelRecord,
    ProgramRecord,
    Provenance,
    StateArray,
    StateRecord,
    TargetRecord,
    TensorRecord,
    TextRecord,
    TuningRecord,
)
from ferrum.pack.step import INPUTS, OUTPUTS

SECTIONS_1 = ("code", "graph", "plan", "weights", "text", "selftest")
_ENTRIES = (LAUNCHES_NAME, "code/step.so")


class Tensor1(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    name: str
    shape: list[int]
    format: str
    layout: str
    offset: int
    nbytes: int


class Kv1(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    num_layers: int
    num_kv_heads: int
    head_dim: int
    block_size: int
    dtype: str
    bytes_per_block: int


class Memory1(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    weights: int
    fixed: int
    per_token: int
    per_sample: int
    per_thread: int


class Text1(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    bos_token: str = ""
    eos_token: str = ""
    bos_token_id: int | None = None
    eos_token_ids: list[int] = []
    add_bos: bool = False
    tool_format: str = ""
    reasoning_start: str = ""
    reasoning_end: str = ""
    generation: dict[str, float | int | bool] = {}


class Provenance1(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    compiler: str
    toolchain: str
    templates_sha256: str
    source_sha256: str
    options: dict[str, str]


class Manifest1(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    format: int
    reader_min: int
    required: list[str]
    model: ModelRecord
    target: TargetRecord
    contract: str
    tensors: list[Tensor1]
    kv: Kv1
    memory: Memory1
    kernels: list[KernelRecord]
    text: Text1
    endpoints: list[str]
    selftest: bool
    provenance: Provenance1
    members: list[MemberRecord]
    tuning: list[TuningRecord] = []


def contract_hash_1(tensors: list[TensorRecord]) -> str:
    """SHA-256 (hex) over ``[[name, shape, format, layout], ...]`` as JSON without spaces."""
    rows = [[tensor.name, tensor.shape, tensor.format, tensor.layout] for tensor in tensors]
    return hashlib.sha256(msgspec.json.encode(rows)).hexdigest()


def upgrade(old: Manifest1) -> Manifest:
    """The same pack in the words of format 2; ``format`` stays 1."""
    kv, names = old.kv, [member.name for member in old.members]
    state = StateRecord(
        name="kv",
        kind="paged",
        group=0,
        layers=kv.num_layers,
        arrays=[StateArray(name=name, heads=kv.num_kv_heads, width=kv.head_dim, dtype=kv.dtype) for name in ("k", "v")],
        unit=kv.block_size,
        unit_bytes=kv.bytes_per_block,
    )
    program = ProgramRecord(
        name=STEP,
        graph="graph.txt",
        rows=["tokens", "seqs", "samples"],
        inputs=list(INPUTS),
        outputs=list(OUTPUTS),
        states=[state.name],
        selftest="selftest.json" if old.selftest else "",
    )
    build = BuildRecord(
        entry=next((name for name in _ENTRIES if name in names), ""),
        launches=LAUNCHES_NAME if LAUNCHES_NAME in names else "",
        plan="plan.json",
        memory=MemoryRecord(**{name: getattr(old.memory, name) for name in MemoryRecord.__struct_fields__}),
        kernels=old.kernels,
        layers="layers.json" if "layers.json" in names else "",
    )
    code = CodeRecord(
        name="main",
        features=[],
        programs={STEP: build},
        members=[name for name in names if name.startswith("code/")],
        toolchain=old.provenance.toolchain,
        proved=False,  # it was not written down
    )
    text, named = old.text, {"bos_token": old.text.bos_token, "eos_token": old.text.eos_token}
    kept_text = ("bos_token_id", "eos_token_ids", "tool_format", "reasoning_start", "reasoning_end", "generation")
    required = ["weights", "programs", "code", *(["text"] if "text" in old.required else [])]
    kept = ("format", "reader_min", "model", "target", "contract", "endpoints", "members", "tuning")
    return Manifest(
        required=required,
        tensors=[TensorRecord(**msgspec.structs.asdict(tensor)) for tensor in old.tensors],
        states=[state],
        programs=[program],
        code=[code],
        text=TextRecord(
            special_tokens={name: token for name, token in named.items() if token},
            **{name: getattr(text, name) for name in kept_text},
        ),
        provenance=Provenance(**{name: getattr(old.provenance, name) for name in Provenance.__struct_fields__}),
        **{name: getattr(old, name) for name in kept},
    )
