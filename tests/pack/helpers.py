"""A minimal valid pack, for tests that need a file rather than a model."""

from __future__ import annotations

from pathlib import Path

import msgspec

from ferrum.pack.check import contract_hash
from ferrum.pack.schema import (
    FORMAT_VERSION,
    KernelRecord,
    KvRecord,
    Manifest,
    MemoryRecord,
    ModelRecord,
    Provenance,
    SelfTest,
    SelfTestCase,
    TargetRecord,
    TensorRecord,
    TextRecord,
)
from ferrum.pack.writer import PackWriter

VOCAB_SIZE = 16
MAX_MODEL_LEN = 64
MANIFEST_ROOM = 8192

TENSORS = [
    TensorRecord(name="embed", shape=[VOCAB_SIZE, 8], format="f32", layout="plain", offset=0, nbytes=512),
    TensorRecord(name="norm.weight", shape=[8], format="f32", layout="plain", offset=512, nbytes=32),
]
WEIGHTS = bytes(range(256)) * 2 + bytes(32)
MEMBERS = {
    "graph.txt": b"graph tiny\n",
    "plan.json": b"{}",
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


def minimal_manifest(**changes: object) -> Manifest:
    """A manifest without members; ``changes`` replace its fields."""
    manifest = Manifest(
        format=FORMAT_VERSION,
        reader_min=1,
        required=["code", "graph", "plan", "weights", "text", "selftest"],
        model=ModelRecord(
            name="minimal",
            family="qwen3",
            num_parameters=136,
            vocab_size=VOCAB_SIZE,
            max_model_len=MAX_MODEL_LEN,
            quant="f32",
        ),
        target=TargetRecord(name="cpu-x86_64-avx2", device="cpu", arch="x86_64", features=["avx2", "fma"]),
        contract=contract_hash(TENSORS),
        tensors=TENSORS,
        kv=KvRecord(num_layers=1, num_kv_heads=1, head_dim=8, block_size=4, dtype="f32", bytes_per_block=256),
        memory=MemoryRecord(weights=len(WEIGHTS), fixed=4096, per_token=64, per_sample=64, per_thread=1024),
        kernels=[
            KernelRecord(
                symbol="rms_norm_8",
                spec="rms_norm",
                params={"n": 8, "eps": 1e-6, "simd": "avx2", "bias": False},
                why="the only one",
                calls=1,
                weight_bytes=32,
                flops_per_token=32,
                bytes_per_token=64,
            )
        ],
        text=TextRecord(eos_token="<e>", eos_token_ids=[0], generation={"temperature": 0.5, "top_k": 20}),
        endpoints=["chat", "completions"],
        selftest=True,
        provenance=Provenance(compiler="ferrum test", toolchain="none", templates_sha256="", source_sha256="", options={}),
        members=[],
    )
    return msgspec.structs.replace(manifest, **changes)


def write_minimal_pack(
    path: Path,
    state_dir: Path | None = None,
    manifest: Manifest | None = None,
    members: dict[str, bytes] | None = None,
    manifest_room: int = MANIFEST_ROOM,
) -> Path:
    """A valid pack of about 180 KB at ``path``; recorded as built here only if ``state_dir`` is given.

    ``members`` replaces the default ones (``selftest.json`` is added to the default ones only).
    """
    if members is None:
        members = {**MEMBERS, "selftest.json": msgspec.json.encode(SELFTEST)}
    with PackWriter(path, manifest_room=manifest_room) as writer:
        for name, data in members.items():
            writer.add(name, data)
        return writer.finish(manifest or minimal_manifest(), record=state_dir is not None, state_dir=state_dir)
