"""The compiler as a whole: the same bytes twice, whole packs or none, stages that can be stopped after and started from."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from ferrum.codegen.driver import compile_model, compile_targets
from ferrum.codegen.options import CompileOptions
from ferrum.codegen.stages import STAGE_NAMES, STAGES
from ferrum.errors import FerrumError
from ferrum.pack.programs import build_of, require_step
from ferrum.pack.reader import open_pack, read_manifest
from tests.codegen.folders import compile_folder, kept_pack, traced

KILLS = int(os.environ.get("KILL_POINTS", "5"))


@pytest.mark.parametrize("quant", [pytest.param("none", marks=pytest.mark.slow), "int4a-g32"])
def test_two_builds_are_byte_identical(qwen3_folder: Path, tmp_path: Path, quant: str) -> None:
    one = compile_folder(qwen3_folder, quant, prove=True, output=tmp_path / "one.fpk")
    two = compile_model(CompileOptions(str(qwen3_folder), quant=quant, output=tmp_path / "two.fpk", jobs=1))
    assert one.read_bytes() == two.read_bytes()


def test_what_was_packed_is_what_the_manifest_says(qwen3_folder: Path) -> None:
    with open_pack(kept_pack(qwen3_folder, "int4-g32", prove=True), check="full") as pack:
        manifest = pack.manifest
        build = build_of(manifest)
        assert require_step(manifest).selftest and build.layers and manifest.code[0].proved
        assert manifest.required == ["weights", "programs", "code"]
        assert {k.spec for k in build.kernels} == {
            "embedding", "rms_norm", "linear", "rope_table", "paged_attention", "quantize", "gather_rows", "sample",
        }  # fmt: skip
        assert all(k.why and k.calls > 0 for k in build.kernels)
        head = next(t for t in manifest.tensors if t.name == "lm_head.weight")
        assert head.format.startswith("int6")
        # every weight is read once per step; embeddings only by row
        linear = sum(k.weight_bytes for k in build.kernels if k.spec == "linear")
        assert linear == sum(t.nbytes for t in manifest.tensors if t.layout.startswith("unit") and "embed" not in t.name)


def test_stop_after_and_start_from(qwen3_folder: Path, tmp_path: Path, digests_for_code: None) -> None:
    dumps = tmp_path / "dumps"
    options = CompileOptions(str(qwen3_folder), quant="int8", dump_dir=dumps, output=tmp_path / "whole.fpk", prove=False)
    whole = compile_model(options).read_bytes()
    names = [p.name for p in sorted(dumps.iterdir())]
    assert [n.split("-", 1)[1].split(".")[0] for n in names] == list(STAGE_NAMES[: STAGE_NAMES.index("pack")])
    for stage in ("canonicalize", "layout"):
        again = CompileOptions(
            str(qwen3_folder), quant="int8", dump_dir=dumps, output=tmp_path / "again.fpk", prove=False, start_from=stage
        )
        assert compile_model(again).read_bytes() == whole, stage
    stopped = CompileOptions(str(qwen3_folder), dump_dir=tmp_path / "stopped", stop_after="fuse_rope", output=tmp_path / "no.fpk")
    assert compile_model(stopped).name.endswith("fuse_rope.txt")
    assert not (tmp_path / "no.fpk").exists()
    with pytest.raises(FerrumError, match="no stage is called 'fuse'"):
        compile_model(CompileOptions(str(qwen3_folder), stop_after="fuse"))
    with pytest.raises(FerrumError, match="has no input in text form"):
        compile_model(CompileOptions(str(qwen3_folder), start_from="render"))
    with pytest.raises(FerrumError, match="layout comes after fuse_mlp"):
        compile_model(CompileOptions(str(qwen3_folder), start_from="layout", stop_after="fuse_mlp"))


def test_dumps_of_several_targets_lie_apart(
    qwen3_folder: Path, tmp_path: Path, digests_for_code: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes before the machine is written once; each target's own stages can be gone on from."""
    monkeypatch.chdir(tmp_path)
    names = ("cpu-avx2", "cpu-x86_64")
    both = CompileOptions(str(qwen3_folder), ",".join(names), dump_dir=tmp_path / "both", name="m", prove=False)
    packs = dict(zip(names, compile_targets(both), strict=True))
    assert sorted(p.name for p in (tmp_path / "both").iterdir() if p.is_dir()) == sorted(names)
    for name in names:
        options = CompileOptions(str(qwen3_folder), name, name="m", prove=False)
        alone = replace(options, dump_dir=tmp_path / name, output=tmp_path / "x.fpk")
        assert compile_model(alone).read_bytes() == packs[name].read_bytes()
        apart = {p.name: p.read_bytes() for d in ("both", f"both/{name}") for p in (tmp_path / d).iterdir() if p.is_file()}
        assert apart == {p.name: p.read_bytes() for p in (tmp_path / name).iterdir()}
        again = replace(alone, dump_dir=tmp_path / "both" / name, start_from="select", output=tmp_path / "y.fpk")
        assert compile_model(again).read_bytes() == packs[name].read_bytes()


def test_each_stage_refuses_what_belongs_behind_it(qwen3_folder: Path, tmp_path: Path) -> None:
    """A dump put in place of an earlier one: an op that no pass has made by then is told, not computed with."""
    compile_model(CompileOptions(str(qwen3_folder), dump_dir=tmp_path, stop_after="fuse_paged"))
    dumps = {path.stem.split("-", 1)[1]: path for path in sorted(tmp_path.glob("*.txt"))}
    dumps["fuse_norm"].write_bytes(dumps["fuse_attention"].read_bytes())
    with pytest.raises(FerrumError, match="= rope: no graph has this op yet.*after fuse_norm.*start from a later stage"):
        compile_model(CompileOptions(str(qwen3_folder), dump_dir=tmp_path, start_from="fuse_rope", stop_after="fuse_mlp"))


def test_stages_are_one_list_of_data() -> None:
    assert [s.scope for s in STAGES] == sorted((s.scope for s in STAGES), key=("model", "variant", "target").index)
    assert all(s.dump for s in STAGES) and [s.name for s in STAGES if s.load] == list(STAGE_NAMES[: STAGE_NAMES.index("select")])
    assert all(s.ops for s in STAGES if s.load) and "quantize" not in STAGES[STAGE_NAMES.index("fuse_paged")].ops


@pytest.mark.slow
@pytest.mark.timeout(60 + 60 * KILLS)
def test_kill_leaves_no_half_pack(qwen3_folder: Path, tmp_path: Path) -> None:
    compile_folder(qwen3_folder, "none", output=tmp_path / "first.fpk")
    target = tmp_path / "m.fpk"
    target.write_bytes((tmp_path / "first.fpk").read_bytes())
    old = target.read_bytes()
    dumps = shutil.copytree(traced(qwen3_folder), tmp_path / ".dumps")
    command = [sys.executable, "-m", "ferrum", "compile", str(qwen3_folder), "--quant", "int8", "-o", str(target)]
    command += ["--start-from", "layout", "--dump-dir", str(dumps)]
    started = time.monotonic()
    subprocess.run([*command[:-5], str(tmp_path / "timed.fpk"), *command[-4:]], check=True, capture_output=True)
    longest = time.monotonic() - started
    rng = random.Random(5)
    for _ in range(KILLS):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(rng.uniform(0.3, 1.0) * longest)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        if target.read_bytes() != old:
            assert read_manifest(target).model.quant == "int8"
            with open_pack(target, trust=True, check="full"):
                pass
            target.write_bytes(old)
    assert {p.name for p in tmp_path.iterdir() if not p.name.startswith(".")} == {"first.fpk", "m.fpk", "timed.fpk"}


def test_a_dump_of_another_target_or_format_is_refused(qwen3_folder: Path, tmp_path: Path) -> None:
    """Kernels read weights as the target's layouts lay them; a dump says how another one does."""
    compile_model(CompileOptions(str(qwen3_folder), quant="int8", dump_dir=tmp_path, stop_after="layout"))
    for changes in ({"quant": "none"}, {"quant": "int8", "target": "cuda-sm80"}):
        with pytest.raises(FerrumError, match="not .* as .*start from layout") as caught:
            compile_model(CompileOptions(str(qwen3_folder), dump_dir=tmp_path, start_from="select", prove=False, **changes))
        assert caught.value.code == "bad-option"
    layout = next(tmp_path.glob("*-layout.txt"))
    layout.write_text(layout.read_text().replace("format(int8-g", "format(nine-g"))
    with pytest.raises(FerrumError, match="nine-g"):
        compile_model(CompileOptions(str(qwen3_folder), quant="int8", dump_dir=tmp_path, start_from="select", prove=False))


@pytest.mark.parametrize(("quant", "kv_dtype", "activations"), [("int8", "", "f32"), ("f32", "bf16", "auto")])
def test_a_rounded_cache_is_no_fault_of_exact_products(quant: str, kv_dtype: str, activations: str, tiny_folder: Path) -> None:
    """The proof allows what the cache loses, whatever the products do."""
    compile_folder(tiny_folder, quant, kv_dtype=kv_dtype, activations=activations, prove=True)
