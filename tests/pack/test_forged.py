"""A manifest that was edited by somebody who is trusted: nothing of it reaches code that was made for other numbers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from ferrum.errors import FerrumError
from ferrum.pack.check import contract_hash
from ferrum.pack.programs import step_program
from ferrum.pack.schema import ExternalRecord, FlowRecord, LinkRecord, Manifest, Shard
from tests.codegen.folders import compile_folder
from tests.engine.windows import save_model
from tests.pack import forged
from tests.pack.build import parts_of, with_manifest
from tests.pack.helpers import TENSORS, code_record, encode_record, minimal_manifest, paged_state, step_record

CUDA = msgspec.structs.replace(minimal_manifest().target, device="cuda")
COUNT = int(os.environ.get("FORGED_MANIFESTS", "300"))


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compiled model of a layer without and two with a window, with its self-test."""
    folder = save_model(tmp_path_factory.mktemp("forged"), 24, mixed=True, length=1024)
    return compile_folder(folder, "f32", prove=True)


@pytest.mark.timeout(60 + COUNT)
def test_no_edit_is_a_crash(real: Path) -> None:
    command = [sys.executable, "-m", "tests.pack.forged", str(real), str(COUNT), "7"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    assert run.returncode == 0, f"{lines[-1] if lines else ''}: {run.returncode}\n{run.stderr[-2000:]}"
    done, said = lines[0::2], lines[1::2]
    assert len(said) == COUNT
    refused = [text for text in said if text]
    assert COUNT // 3 < len(refused) < COUNT and all(text.count(" · ") >= 1 for text in refused)
    # what only describes the pack may be anything
    ran = {what.split(".")[0].split(":")[0] for what, text in zip(done, said, strict=True) if not text}
    described = {"programs", "text", "model", "provenance", "endpoints", "tuning", "members", "target", "code"}
    assert ran <= described | {"reader_min", "format", "required"}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("states.0.unit", 32), ("states.0.unit", 8), ("states.0.unit_bytes", 1), ("states.0.unit_bytes", 1 << 18),
        ("states.1.window", 25), ("states.1.window", 0), ("states.1.window", 1 << 30), ("states.1.unit", 32),
        ("states.1.group", 0), ("states.1.group", 2), ("states.0.group", 1), ("states.1.layers", 9),
        ("states.1.kind", "paged"), ("states.1.kind", "slot"),
        ("model.vocab_size", 97), ("model.vocab_size", 95), ("model.max_model_len", 1 << 20), ("tensors.0.offset", 64),
    ],
)  # fmt: skip
def test_numbers_that_reach_code_are_refused_even_with_a_contract_that_fits(
    real: Path, tmp_path: Path, path: str, value: int | str
) -> None:
    def edit(text: bytes) -> bytes:
        manifest = msgspec.json.decode(text)
        *parents, last = path.split(".")
        record = manifest
        for key in parents:
            record = record[int(key)] if isinstance(record, list) else record[key]
        record[last] = value
        made = msgspec.convert(manifest, Manifest)
        manifest["contract"] = contract_hash(made.tensors, made.states, made.model.vocab_size, made.model.max_model_len)
        return msgspec.json.encode(manifest, order="sorted")

    (tmp_path / "x.fpk").write_bytes(with_manifest(parts_of(real), edit))
    said = forged.outcome(tmp_path / "x.fpk")
    words = "do not belong together", "offset", "not below vocab_size", "of one group differ", "a window of", "in other groups"
    assert any(text in said for text in words), said


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"external": [ExternalRecord(name="a", shape=[1], format="f32", layout="rows", bound_by="request")]}, "from outside"),
        ({"tensors": [msgspec.structs.replace(TENSORS[0], shard=Shard(axis=0, index=0, count=2))]}, "several devices"),
        ({"links": [LinkRecord(role="draft", contract="0" * 64, required=True)]}, "other packs"),
        ({"flow": [FlowRecord(program="step", after="step", times=3, feeds={})]}, "in turn"),
        ({"launcher": 16384}, "launcher"),
        ({"programs": [step_record(whole=True)]}, "whole sequences"),
        ({"programs": [step_record(inputs=[])]}, "other arrays"),
        ({"programs": [step_record(name="draft")]}, "no program 'step'"),
        ({"programs": [step_record(name="encode")]}, "other arrays"),
        ({"programs": [encode_record(outputs=[])]}, "other arrays"),
        ({"programs": [encode_record(0)]}, "other arrays"),
        ({"programs": [encode_record((1 << 20) + 1)]}, "other arrays"),
        ({"programs": [encode_record(whole=False)]}, "parts of sequences"),
        ({"programs": [encode_record(states=["kv"])]}, "states of an encoder"),
        ({"states": [msgspec.structs.replace(paged_state(), kind="fixed")]}, "other kinds"),
        ({"states": [msgspec.structs.replace(paged_state(), kind="slot")]}, "other groups"),
        ({"format": 1}, "compile it again"),
    ],
)  # fmt: skip
def test_what_is_reserved_is_refused_in_words(changes: dict[str, object], named: str) -> None:
    with pytest.raises(FerrumError) as caught:
        step_program(minimal_manifest(**changes), "x.fpk")
    assert named in str(caught.value) and "x.fpk" in str(caught.value)


def test_an_encoder_keeps_nothing() -> None:
    code = code_record(program="encode")
    manifest = minimal_manifest(programs=[encode_record(7)], states=[], code=[code])
    found = step_program(manifest, "x", {"avx2", "fma"})
    assert (found.record.name, found.width, found.build.entry) == ("encode", 7, "code/step.so")
    assert [(group.layers, group.unit_bytes) for group in found.groups] == [(0, 0)]
    assert step_program(msgspec.structs.replace(manifest, target=CUDA), "x", {"avx2", "fma"}).width == 7


def test_a_block_spans_the_states_of_its_program_and_no_others() -> None:
    own, other = paged_state(), msgspec.structs.replace(paged_state(unit=8, unit_bytes=999), name="draft.kv", group=1)
    second = msgspec.structs.replace(paged_state(heads=2, unit_bytes=512), name="kv1")
    manifest = minimal_manifest(states=[other, own, second], programs=[step_record(states=["kv", "kv1"])])
    (kv,) = step_program(manifest, "x").groups
    assert (kv.unit, kv.unit_bytes, kv.layers) == (own.unit, own.unit_bytes + 512, 2)
    with pytest.raises(FerrumError, match="keeps no blocks"):
        step_program(minimal_manifest(programs=[step_record(states=[])]), "x")


def test_the_first_variant_that_runs_here_is_taken() -> None:
    plain = minimal_manifest().code[0]
    fast = code_record("code/step.c", name="fast", features=["amx"])
    manifest: Manifest = minimal_manifest(code=[fast, plain])
    assert step_program(manifest, "x", {"amx", "avx2"}).build.entry == "code/step.c"
    assert step_program(manifest, "x", {"avx2"}).build.entry == "code/step.so"
    with pytest.raises(FerrumError, match="lacks amx"):
        step_program(minimal_manifest(code=[fast]), "x", {"avx2"})


def test_the_kinds_of_edits_are_all_drawn(real: Path) -> None:
    import random

    rng, seen = random.Random(1), set()
    manifest = parts_of(real)[0].data.rstrip(b" ")
    for _ in range(300):
        seen.add(forged.forge(msgspec.json.decode(manifest), rng).split(".")[0].split(":")[0])
    assert {"model", "states", "programs", "tensors", "members", "code", "target", "text"} <= seen
