"""The manifest of a ``.fpk``: the only contract between the compiler and the runtime.

Every struct refuses unknown fields. Sizes are bytes, offsets are from the start of the named member. Field meanings and
the file layout are described in docs/pack-format.md.
"""

from __future__ import annotations

import msgspec

FORMAT_VERSION = 1
MEMBER_ALIGNMENT = 16 * 1024
TENSOR_ALIGNMENT = 64
MANIFEST_NAME = "manifest.json"


class ModelRecord(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """What was compiled. ``source`` is the name the user gave, without local folders; ``family`` e.g. ``qwen3``."""

    name: str
    family: str
    source: str = ""
    revision: str = ""
    licence: str = ""
    num_parameters: int
    vocab_size: int
    max_model_len: int
    quant: str


class TargetRecord(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The machine kind. ``name`` as for ``--target``; ``features`` are all required of the machine that loads the pack."""

    name: str
    device: str  # "cpu" | "cuda" | "metal"
    arch: str  # "x86_64", "aarch64", "sm_89" …
    features: list[str]


class TensorRecord(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """One stored array inside the member ``weights``."""

    name: str
    shape: list[int]
    format: str  # logical: "f32", "bf16", "int8-g128", "int4-g32", "int4a-g128" …
    layout: str  # physical, e.g. "unit16x2h1"
    offset: int
    nbytes: int


class KvRecord(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The paged cache. ``bytes_per_block`` covers keys and values of all layers."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    block_size: int
    dtype: str
    bytes_per_block: int


class MemoryRecord(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Bytes needed = weights + blocks * kv.bytes_per_block + fixed + max_tokens * per_token + max_samples * per_sample
    + threads * per_thread."""

    weights: int
    fixed: int
    per_token: int
    per_sample: int
    per_thread: int


class TuningRecord(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """One way to cut products of a format that the tuner measured: rows by tiles in registers, KiB of weights in a chunk.

    ``microseconds``: of one pass over weights that no cache holds, by rows of activations.
    """

    format: str
    rows: int
    tiles: int
    chunk_kib: int
    chosen: bool
    microseconds: dict[str, int]


class KernelRecord(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """One generated kernel: its symbol, spec, parameters, cost per call as formula inputs, and why it was chosen."""

    symbol: str
    spec: str
    params: dict[str, int | float | str | bool]
    why: str
    calls: int  # launches in one step
    weight_bytes: int  # read once per step, all calls together
    flops_per_token: int  # all calls together
    bytes_per_token: int  # activations moved, all calls together


class TextRecord(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """What the server needs besides the graph. The tokenizer and the template are members of their own."""

    bos_token: str = ""
    eos_token: str = ""
    bos_token_id: int | None = None
    eos_token_ids: list[int] = []
    add_bos: bool = False
    tool_format: str = ""  # "", "hermes", "qwen3-coder", "llama3", "mistral"
    reasoning_start: str = ""
    reasoning_end: str = ""
    generation: dict[str, float | int | bool] = {}  # temperature, top_p, top_k, min_p, repetition_penalty …


class Provenance(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Who made it: versions and digests only, nothing of the machine or the time (builds are byte-identical)."""

    compiler: str
    toolchain: str
    templates_sha256: str
    source_sha256: str  # of the checkpoint: its tensors' names, shapes and bytes
    options: dict[str, str]


class MemberRecord(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Another zip member: its exact size, position in the file and SHA-256 (hex)."""

    name: str
    offset: int
    nbytes: int
    sha256: str


class Manifest(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Everything about a pack but its bytes. ``required`` names the sections a reader must know to open it."""

    format: int
    reader_min: int
    required: list[str]
    model: ModelRecord
    target: TargetRecord
    contract: str  # SHA-256 over names, shapes, formats and layouts of all tensors; repeated inside the code
    tensors: list[TensorRecord]
    kv: KvRecord
    memory: MemoryRecord
    kernels: list[KernelRecord]
    text: TextRecord
    endpoints: list[str]
    selftest: bool  # whether the member "selftest.json" is there
    provenance: Provenance
    members: list[MemberRecord]
    tuning: list[TuningRecord] = []


KNOWN_SECTIONS = ("code", "graph", "plan", "weights", "text", "selftest")


class SelfTestCase(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """A prompt and what the interpreter says: the last row's largest logits and the greedy continuation."""

    tokens: list[int]
    top_tokens: list[int]
    top_logits: list[float]
    logit_norm: float  # L2 norm of the whole last row
    greedy: list[int]


class SelfTest(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """``tolerance`` bounds |logit - reference| / max|reference| over ``top_logits``."""

    tolerance: float
    cases: list[SelfTestCase]
