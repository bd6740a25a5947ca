"""The tuner: what it tries, what it leaves in the pack, and when it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ferrum import LLM, SamplingParams
from ferrum.cli.main import main
from ferrum.codegen import tune
from ferrum.codegen.driver import compile_model
from ferrum.codegen.layouts import parse_format
from ferrum.codegen.options import CompileOptions
from ferrum.codegen.target import TARGETS
from ferrum.errors import FerrumError
from ferrum.pack.programs import build_of
from ferrum.pack.reader import read_manifest
from tests.codegen.folders import traced


@pytest.mark.parametrize("fmt", ["f32", "bf16", "int8-g64", "int4-g32"])
def test_candidates_fit_every_layout(fmt: str) -> None:
    """An even number of tiles, since gate and up take turns; no blocking twice."""
    for target in TARGETS:
        found = tune.candidates(target, parse_format(fmt))
        assert len(set(found)) == len(found) > 2
        assert all(b.tiles % 2 == 0 and b.rows * b.tiles <= target.registers for b in found)
        # where bits depend on the way, there is one; where they do not, the number of rows is measured
        ways = {b.amx_rows for b in found}
        assert ways == ({0} if not target.amx or fmt == "f32" else {1} if fmt == "bf16" else {2, 8, 16})


@pytest.mark.slow
def test_a_tuned_pack(
    qwen3_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tune, "_COLD_BYTES", 1 << 16)
    monkeypatch.setattr(tune, "_MANY_REGISTERS", (((6, 2), (4, 4)), ((6, 4), (4, 4))))
    monkeypatch.setattr(tune, "_FEW_REGISTERS", (((2, 2), (2, 4)), ((4, 2), (2, 4))))
    options = CompileOptions(str(qwen3_folder), quant="int4-g32", dump_dir=traced(qwen3_folder), start_from="layout")
    pack = compile_model(replace(options, tune=True, output=tmp_path / "tuned.fpk"))
    records = read_manifest(pack).tuning
    formats = {r.format for r in records}
    assert formats == {"int4-g32", "int6-g64"} or formats == {"int4-g32", "int6-g32"}
    for name in formats:
        tried = [r for r in records if r.format == name]
        assert len({(r.rows, r.tiles, r.chunk_kib, r.amx_rows) for r in tried}) == len(tried) >= 3
        assert sum(r.chosen for r in tried) == 1
        assert all(set(r.microseconds) == {str(rows) for rows in tune.ROWS} for r in tried)
    chosen = {r.format: (r.rows, r.tiles) for r in records if r.chosen}
    for kernel in build_of(read_manifest(pack)).kernels:
        if kernel.spec == "linear":
            assert (kernel.params["mr"], kernel.params["nr"]) == chosen[str(kernel.params["format"])]
    with LLM(pack) as llm:
        assert len(llm.generate([[1, 2, 3]], SamplingParams(max_tokens=4, ignore_eos=True))[0].token_ids) == 4
    assert main(["explain", str(pack), "--why"]) == 0
    text = capsys.readouterr().out
    assert text.count("chosen int") == 2 and text.count("tried  int") == len(records) - 2


def test_another_machine_cannot_be_measured(qwen3_folder: Path, tmp_path: Path) -> None:
    options = CompileOptions(str(qwen3_folder), target="cpu-arm64", dump_dir=traced(qwen3_folder), start_from="layout")
    with pytest.raises(FerrumError, match="cannot be measured"):
        compile_model(replace(options, tune=True, output=tmp_path / "x.fpk"))
