"""The manifest of a ``.fpk``: the only contract between the compiler and the runtime.

A pack is *weights*, *states* (what a sequence keeps between steps), *programs* (functions over both, one launch list each) and
*code* (machine code of the programs, in one or several variants). Every struct refuses unknown fields. Sizes are bytes,
offsets are from the start of the named member. Field meanings and the file layout are described in docs/pack-format.md.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta

from ferrum.pack.step import Rows, StepArray

FORMAT_VERSION = 2
MEMBER_ALIGNMENT = 16 * 1024
TENSOR_ALIGNMENT = 64
MANIFEST_NAME = "manifest.json"
WEIGHTS_NAME = "weights"
STEP = "step"  # the program that turns tokens into sampled tokens
ENCODE = "encode"  # the program that turns whole sequences into one row each

# Bounds are part of the types: whoever decodes a manifest has checked them. Sums of a few sizes stay far from 2**63.
Size: TypeAlias = Annotated[int, Meta(ge=0, le=1 << 48)]  # bytes of anything
Part: TypeAlias = Annotated[int, Meta(ge=0, le=1 << 40)]  # bytes of a row, a block, a thread
Count: TypeAlias = Annotated[int, Meta(ge=0, le=(1 << 31) - 1)]
Positive: TypeAlias = Annotated[int, Meta(ge=1, le=(1 << 31) - 1)]
Few: TypeAlias = Annotated[int, Meta(ge=0, le=1 << 16)]  # layers, heads, tokens of a block
Elements: TypeAlias = Annotated[int, Meta(ge=0, le=1 << 44)]


class ModelRecord(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """What was compiled. ``source`` is the name the user gave, without local folders; ``family`` e.g. ``qwen3``."""

    name: str
    family: str
    source: str = ""
    revision: str = ""
    licence: str = ""
    num_parameters: Elements
    vocab_size: Positive
    max_model_len: Positive
    quant: str


class TargetRecord(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The machine kind. ``name`` as for ``--target``; ``features`` are all required of the machine that loads the pack."""

    name: str
    device: str  # "cpu" | "cuda" | "metal"
    arch: str  # "x86_64", "aarch64", "sm_89" …
    features: list[str]


class Shard(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Part ``index`` of ``count`` equal parts of a tensor along ``axis``, one for each rank (reserved)."""

    axis: Few
    index: Few
    count: Few


class TensorRecord(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """One stored array inside the member ``weights``; all programs and all code variants read the same one."""

    name: str
    shape: list[int]
    format: str  # logical: "f32", "bf16", "int8-g64", "int4-g32", "int4a-g128" …
    layout: str  # physical, e.g. "unit16x2h1"
    offset: Size
    nbytes: Size
    shard: Shard | None = None


class ExternalRecord(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """An array that the pack does not hold: bound when the pack is loaded, or by each request (reserved: adapters)."""

    name: str
    shape: list[int]
    format: str
    layout: str
    bound_by: Literal["load", "request"]


class StateArray(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """One array of a state: ``heads`` times ``width`` numbers for each token, row or sequence, as the state's kind says."""

    name: str  # "k", "v", "latent", "conv" …
    heads: Few
    width: Few
    dtype: str


class StateRecord(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """What a sequence keeps between steps, of ``layers`` layers of one geometry.

    =========  ============================  ==========================================================================
    kind       ``unit_bytes`` are those of   and
    =========  ============================  ==========================================================================
    paged      a block of ``unit`` tokens    blocks are taken as the sequence grows
    window     a block of ``unit`` tokens    released once the oldest query of a step has passed ``window`` tokens
    slot       a sequence                    one per sequence; checkpointed every ``checkpoint`` tokens for prefix reuse
    fixed      a row                         at most ``rows`` rows, written once, with their number
    =========  ============================  ==========================================================================

    States of one ``group`` have the same kind, window and unit: a block id (or a slot's number) stands for the same tokens
    in all of them, in every program.
    """

    name: str
    kind: Literal["paged", "window", "slot", "fixed"]
    group: Few
    layers: Few
    arrays: list[StateArray]  # of one layer
    unit: Annotated[int, Meta(ge=1, le=1 << 16)]
    unit_bytes: Annotated[int, Meta(ge=1, le=1 << 40)]  # all layers
    window: Count = 0
    checkpoint: Count = 0
    rows: Count = 0


class MemoryRecord(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Bytes that a program needs beside weights and states = fixed + max_tokens * per_token + max_samples * per_sample
    + threads * per_thread."""

    fixed: Size
    per_token: Part
    per_sample: Part
    per_thread: Part


class KernelRecord(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """One generated kernel: its symbol, spec, parameters, cost per call as formula inputs, and why it was chosen."""

    symbol: str
    spec: str
    params: dict[str, int | float | str | bool]
    why: str
    calls: Count  # launches in one step
    weight_bytes: Size  # read once per step, all calls together
    flops_per_token: Size  # all calls together
    bytes_per_token: Size  # activations moved, all calls together


class ProgramRecord(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """One function of the pack. ``name`` is its role: "step" (tokens to sampled tokens), "encode" (whole inputs to rows) …

    ``rows``: what a call of it is a number of. ``inputs`` are filled by the engine, by the output of another program (link)
    or from the request. ``whole``: a sequence enters in one call or not at all. What depends on the code is in ``BuildRecord``.
    """

    name: str
    graph: str  # member: the graph's text form, with the formats of activations that the first variant of the code has
    rows: list[Rows]
    inputs: list[StepArray]
    outputs: list[StepArray]
    states: list[str]
    constants: str = ""  # member: numbers that the graph names by their digest
    selftest: str = ""  # member: prompts and what the interpreter says; empty without
    whole: bool = False


class BuildRecord(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """How one variant of the code computes a program. ``entry``: the member that a device opens: a shared object, or a launch
    table that names its code."""

    entry: str
    launches: str = ""  # member: the launch table, which a GPU opens and a CPU's code has inside; empty where there is none
    plan: str  # member: launches, arena, workspace, for people
    memory: MemoryRecord
    kernels: list[KernelRecord]
    layers: str = ""  # member: sketches of what the layers compute for the self-test's prompts; empty without

    @property
    def weight_bytes(self) -> int:
        """Of the weights, what one step reads: an embedding that only gives rows, or a kernel that is not called, has no part."""
        return sum(kernel.weight_bytes for kernel in self.kernels)


class CodeRecord(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """One variant of the machine code. A machine takes the first of the list whose ``features`` it has.

    ``programs``: by their names. ``members``: all that belong to the variant, sources among them. ``proved``: the code itself,
    not only its compiler, was there when the pack was made: it ran the self-test within the tolerance, on a CPU or in emulation.
    """

    name: str
    features: list[str]  # beyond those of the target; of a CPU the Linux kernel's words, or the name of who made it
    programs: dict[str, BuildRecord]
    members: list[str]
    toolchain: str
    proved: bool


class LinkRecord(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Another pack that belongs to this one, by its contract: a draft model, an adapter, an encoder (reserved)."""

    role: str
    contract: str
    required: bool


class FlowRecord(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """When a program runs beside the others: ``times`` in a row after ``after``, ``feeds`` from outputs to inputs (reserved)."""

    program: str
    after: str
    times: Count
    feeds: dict[str, str]


class TuningRecord(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True, omit_defaults=True):
    """One way to cut products of a format that the tuner measured: rows by tiles in registers, KiB of weights in a chunk.

    ``microseconds``: of one pass over weights that no cache holds, by rows of activations. ``amx_rows``: rows from which tile
    registers multiply, where the target has them.
    """

    format: str
    rows: int
    tiles: int
    chunk_kib: int
    chosen: bool
    microseconds: dict[str, int]
    amx_rows: int = 0


class TextRecord(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """What the server needs besides the graph. The tokenizer and the template are members of their own."""

    special_tokens: dict[str, str] = {}  # by name, for templates: "bos_token", "eos_token", "pad_token" …
    bos_token_id: int | None = None
    eos_token_ids: list[int] = []
    tool_format: str = ""  # a name of ferrum.text.tool_formats.FORMATS; "" is none
    reasoning_start: str = ""
    reasoning_end: str = ""
    template_options: list[str] | None = None  # variables a request may set that the templates look at; None: not known
    longest_token: Annotated[int, msgspec.Meta(ge=0, le=1 << 20)] | None = None  # characters of the vocabulary's; None: not known
    generation: dict[str, float | int | bool] = {}  # temperature, top_p, top_k, min_p, repetition_penalty …


class Provenance(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Who made it: versions and digests only, nothing of the machine or the time (builds are byte-identical)."""

    compiler: str
    templates_sha256: str
    source_sha256: str  # of the checkpoint: its tensors' names, shapes and bytes
    options: dict[str, str]

    @property
    def blocks(self) -> str:
        """What became of weights that the checkpoint had quantized; empty without any."""
        return self.options.get("blocks", "")

    @property
    def calibrated(self) -> str:
        """Which matrices have factors, and why others have none; empty where nothing was calibrated."""
        return self.options.get("calibrated", "")


class MemberRecord(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Another zip member: its exact size, position in the file and SHA-256 (hex)."""

    name: str
    offset: Size
    nbytes: Size
    sha256: str


class Manifest(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Everything about a pack but its bytes. ``required`` names the sections a reader must know to open it."""

    format: int
    reader_min: int
    required: list[str]
    model: ModelRecord
    target: TargetRecord
    contract: str  # SHA-256 over tensors, states, vocab_size and max_model_len; repeated inside the code
    tensors: list[TensorRecord]
    states: list[StateRecord]
    programs: list[ProgramRecord]
    code: list[CodeRecord]
    text: TextRecord
    endpoints: list[str]
    provenance: Provenance
    members: list[MemberRecord]
    tuning: list[TuningRecord] = []
    external: list[ExternalRecord] = []
    links: list[LinkRecord] = []
    flow: list[FlowRecord] = []
    launcher: Size = 0  # bytes in front of the archive (reserved)

    @property
    def weights_bytes(self) -> int:
        """What a device reads of the member ``weights``: up to the end of the last tensor."""
        return max((t.offset + t.nbytes for t in self.tensors), default=0)

    def program(self, name: str = "") -> ProgramRecord | None:
        """The program of that name; without one what requests run: steps, or in a pack that only embeds ``encode``."""
        found = {program.name: program for program in self.programs}
        return next((found[one] for one in ((name,) if name else (STEP, ENCODE)) if one in found), None)


# what a reader must know to open a pack; each needs its records and members
KNOWN_SECTIONS = ("weights", "programs", "code", "text")


class SelfTestCase(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """A prompt and what the interpreter says: the last row's largest logits and the greedy continuation. Of an encoder the
    embedding's largest numbers in either direction, by their columns, and no continuation."""

    tokens: list[int]
    top_tokens: list[int]
    top_logits: list[float]
    logit_norm: float  # L2 norm of the whole last row
    greedy: list[int]


class SelfTest(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """``tolerance`` bounds |logit - reference| / max|reference| over ``top_logits``."""

    tolerance: float
    cases: list[SelfTestCase]
