"""A minimal valid pack, for tests that need a file rather than a model."""

from __future__ import annotations

from pathlib import Path

import msgspec

from ferrum.pack.check import contract_hash
from ferrum.pack.schema import (
    ENCODE,
    FORMAT_VERSION,
    STEP,
    BuildRecord,
    CodeRecord,
    KernelRecord,
    Manifest,
    MemoryRecord,
    ModelRecord,
    ProgramRecord,
    Provenance,
    SelfTest,
    SelfTestCase,
    StateArray,
    StateRecord,
    TargetRecord,
    TensorRecord,
    TextRecord,
)
from ferrum.pack.step import ENCODE_INPUTS, INPUTS, OUTPUTS, embedding_array
from ferrum.pack.writer import PackWriter

VOCAB_SIZE = 16
MAX_MODEL_LEN = 64
MANIFEST_ROOM = 16384

TENSORS = [
    TensorRecord(name="embed", shape=[VOCAB_SIZE, 8], format="f32", layout="plain", offset=0, nbytes=512),
    TensorRecord(name="norm.weight", shape=[8], format="f32", layout="plain", offset=512, nbytes=32),
]
WEIGHTS = bytes(range(256)) * 2 + bytes(32)
MEMBERS = {
    "step/graph.txt": b"graph tiny\n",
    "step/plan.json": b"{}",
    "code/step.so": b"\x7fELF" + bytes(100),
    "code/step.c": b"int step(void) { return 0; }\n",
    "weights": WEIGHTS,
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"",
}
SELFTEST = SelfTest(
    tolerance=0.01,
    cases=[SelfTestCase(tokens=[1, 2, 3], top_tokens=[5, 4], top_logits=[2.0, 1.0], logit_norm=3.0, greedy=[5, 1])],
)


def paged_state(heads: int = 1, width: int = 8, unit: int = 4, unit_bytes: int = 256, dtype: str = "f32") -> StateRecord:
    """The keys and values of one layer."""
    arrays = [StateArray(name=name, heads=heads, width=width, dtype=dtype) for name in ("k", "v")]
    return StateRecord(name="kv", kind="paged", group=0, layers=1, arrays=arrays, unit=unit, unit_bytes=unit_bytes)


def step_record(**changes: object) -> ProgramRecord:
    program = ProgramRecord(
        name=STEP,
        graph="step/graph.txt",
        rows=["tokens", "seqs", "samples"],
        inputs=list(INPUTS),
        outputs=list(OUTPUTS),
        states=["kv"],
        selftest="step/selftest.json",
    )
    return msgspec.structs.replace(program, **changes)


def encode_record(width: int = 8, **changes: object) -> ProgramRecord:
    """The program of a pack that embeds, whose rows have ``width`` numbers."""
    whole: dict[str, object] = {"inputs": list(ENCODE_INPUTS), "outputs": [embedding_array(width)], "states": [], "whole": True}
    return step_record(name=ENCODE, **whole | changes)


KERNEL = KernelRecord(
    symbol="rms_norm_8",
    spec="rms_norm",
    params={"n": 8, "eps": 1e-6, "simd": "avx2", "bias": False},
    why="the only one",
    calls=1,
    weight_bytes=32,
    flops_per_token=32,
    bytes_per_token=64,
)


def code_record(
    entry: str = "code/step.so", *members: str, launches: str = "", layers: str = "", program: str = STEP, **changes: object
) -> CodeRecord:
    memory = MemoryRecord(fixed=4096, per_token=64, per_sample=64, per_thread=1024)
    build = BuildRecord(entry=entry, launches=launches, plan="step/plan.json", memory=memory, kernels=[KERNEL], layers=layers)
    code = CodeRecord(
        name="main", features=[], programs={program: build}, members=[entry, *members], toolchain="none", proved=False
    )
    return msgspec.structs.replace(code, **changes)


def minimal_manifest(**changes: object) -> Manifest:
    """A manifest without members; ``changes`` replace its fields, and the contract follows them."""
    manifest = Manifest(
        format=FORMAT_VERSION,
        reader_min=1,
        required=["weights", "programs", "code", "text"],
        model=ModelRecord(
            name="minimal",
            family="qwen3",
            num_parameters=136,
            vocab_size=VOCAB_SIZE,
            max_model_len=MAX_MODEL_LEN,
            quant="f32",
        ),
        target=TargetRecord(name="cpu-x86_64-avx2", device="cpu", arch="x86_64", features=["avx2", "fma"]),
        contract="",
        tensors=TENSORS,
        states=[paged_state()],
        programs=[step_record()],
        code=[code_record("code/step.so", "code/step.c")],
        text=TextRecord(special_tokens={"eos_token": "<e>"}, eos_token_ids=[0], generation={"temperature": 0.5, "top_k": 20}),
        endpoints=["chat", "completions"],
        provenance=Provenance(compiler="ferrum test", templates_sha256="", source_sha256="", options={}),
        members=[],
    )
    changed = msgspec.structs.replace(manifest, **changes)
    model = changed.model
    contract = contract_hash(changed.tensors, changed.states, model.vocab_size, model.max_model_len)
    return msgspec.structs.replace(changed, **({"contract": contract} | changes))


def write_minimal_pack(
    path: Path,
    state_dir: Path | None = None,
    manifest: Manifest | None = None,
    members: dict[str, bytes] | None = None,
    manifest_room: int = MANIFEST_ROOM,
) -> Path:
    """A valid pack of about 180 KB at ``path``; recorded as built here only if ``state_dir`` is given.

    ``members`` replaces the default ones (``step/selftest.json`` is added to the default ones only).
    """
    if members is None:
        members = {**MEMBERS, "step/selftest.json": msgspec.json.encode(SELFTEST)}
    with PackWriter(path, manifest_room=manifest_room) as writer:
        for name, data in members.items():
            writer.add(name, data)
        return writer.finish(manifest or minimal_manifest(), record=state_dir is not None, state_dir=state_dir)
