"""Packs of format 1 are listed, explained and verified; running one says in one line what to do."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from ferrum.cli.list import pack_status
from ferrum.cli.main import main
from ferrum.devices.cpu import CpuDevice
from ferrum.devices.options import DeviceOptions
from ferrum.errors import FerrumError
from ferrum.pack.check import decode_manifest
from ferrum.pack.format1 import Kv1, Manifest1, Memory1, Provenance1, Tensor1, Text1, contract_hash_1
from ferrum.pack.programs import kv_groups
from ferrum.pack.reader import open_pack
from ferrum.pack.selftest import read_selftest
from ferrum.pack.verify import verify_pack
from tests.pack.build import parts_of, with_manifest
from tests.pack.helpers import KERNEL, MEMBERS, SELFTEST, TENSORS, minimal_manifest, write_minimal_pack

OLD = {"step/graph.txt": "graph.txt", "step/plan.json": "plan.json"}


@pytest.fixture
def old(tmp_path: Path) -> Path:
    members = {OLD.get(name, name): data for name, data in MEMBERS.items()} | {"selftest.json": msgspec.json.encode(SELFTEST)}
    bare = minimal_manifest(programs=[], code=[], required=["weights"])
    made = parts_of(write_minimal_pack(tmp_path / "old.fpk", None, bare, members))

    def edit(text: bytes) -> bytes:
        new = msgspec.json.decode(text)
        tensors = [Tensor1(**{name: getattr(t, name) for name in Tensor1.__struct_fields__}) for t in TENSORS]
        record = Manifest1(
            format=1,
            reader_min=1,
            required=["code", "graph", "plan", "weights", "text", "selftest"],
            model=bare.model,
            target=bare.target,
            contract=contract_hash_1(TENSORS),
            tensors=tensors,
            kv=Kv1(num_layers=1, num_kv_heads=1, head_dim=8, block_size=4, dtype="f32", bytes_per_block=256),
            memory=Memory1(weights=544, fixed=4096, per_token=64, per_sample=64, per_thread=1024),
            kernels=[KERNEL],
            text=Text1(bos_token="<b>", eos_token="<e>", eos_token_ids=[0], generation={"top_k": 20}),
            endpoints=bare.endpoints,
            selftest=True,
            provenance=Provenance1(compiler="ferrum 0", toolchain="cc 1", templates_sha256="", source_sha256="", options={}),
            members=[],
        )
        return msgspec.json.encode(msgspec.to_builtins(record) | {"members": new["members"]}, order="sorted")

    (tmp_path / "old.fpk").write_bytes(with_manifest(made, edit))
    return tmp_path / "old.fpk"


def test_it_is_read_in_the_words_of_today(old: Path) -> None:
    with open_pack(old, trust=True, check="full") as pack:
        assert pack.manifest.format == 1 and kv_groups(pack.manifest)[0].unit_bytes == 256
        assert pack.manifest.text.special_tokens == {"bos_token": "<b>", "eos_token": "<e>"}
        assert read_selftest(pack).cases and pack.manifest.code[0].toolchain == "cc 1"


def test_it_is_listed_explained_and_verified(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pack_status(old) == "ready" and verify_pack(old).ok
    assert main(["explain", str(old)]) == 0
    said = capsys.readouterr().out
    assert "pack format 1" in said and "rms_norm_8" in said and "kv (paged)" in said


def test_a_manifest_as_format_1_wrote_it_is_still_one() -> None:
    """Literal bytes: what today's records say must not decide what an old pack may hold."""
    text = (
        b'{"contract":"c","endpoints":[],"format":1,"kernels":[{"bytes_per_token":1,"calls":1,"flops_per_token":1,"params":{"k":8},'
        b'"spec":"rms_norm","symbol":"rms_norm_1","weight_bytes":1,"why":"w"}],"kv":{"block_size":16,"bytes_per_block":64,'
        b'"dtype":"f32","head_dim":8,"num_kv_heads":1,"num_layers":1},"members":[{"name":"code/step.so","nbytes":1,"offset":16384,'
        b'"sha256":"s"}],"memory":{"fixed":1,"per_sample":1,"per_thread":1,"per_token":1,"weights":1},"model":{"family":"qwen3",'
        b'"licence":"","max_model_len":8,"name":"m","num_parameters":1,"quant":"none","revision":"","source":"","vocab_size":8},'
        b'"provenance":{"compiler":"c","options":{},"source_sha256":"","templates_sha256":"","toolchain":"cc"},"reader_min":1,'
        b'"required":["code"],"selftest":false,"target":{"arch":"x86_64","device":"cpu","features":[],"name":"cpu"},"tensors":[{'
        b'"format":"f32","layout":"rows","name":"t","nbytes":1,"offset":0,"shape":[1]}],"text":{"add_bos":true,"bos_token":"<s>",'
        b'"bos_token_id":1,"eos_token":"</s>","eos_token_ids":[2],"generation":{},"reasoning_end":"","reasoning_start":"",'
        b'"tool_format":""},"tuning":[{"chosen":true,"chunk_kib":16,"format":"bf16","microseconds":{"1":2},"rows":4,"tiles":2}]}'
    )
    made = decode_manifest(text, "x.fpk")
    assert made.format == 1 and made.text.special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}
    build = made.code[0].programs["step"]
    assert build.kernels[0].params == {"k": 8} and build.entry == "code/step.so"


def test_it_is_not_run(old: Path) -> None:
    with open_pack(old, trust=True) as pack, pytest.raises(FerrumError) as caught:
        CpuDevice().load(pack, DeviceOptions())
    assert caught.value.code in ("pack-version", "wrong-machine") and caught.value.next_step.startswith("compile")


def test_a_field_of_today_is_unknown_to_it(old: Path, tmp_path: Path) -> None:
    def edit(text: bytes) -> bytes:
        return msgspec.json.encode(msgspec.json.decode(text) | {"states": []}, order="sorted")

    (tmp_path / "x.fpk").write_bytes(with_manifest(parts_of(old), edit))
    with pytest.raises(FerrumError, match="states"):
        open_pack(tmp_path / "x.fpk", trust=True)
