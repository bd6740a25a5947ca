"""Stages that only make things faster may be left out: the pack is another one and says the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ferrum import LLM
from ferrum.cli.main import main
from ferrum.codegen.driver import compile_model
from ferrum.codegen.options import CompileOptions
from ferrum.graphs.pipeline import PIPELINE
from ferrum.pack.programs import build_of
from ferrum.pack.reader import open_pack
from tests.cli.checkpoint import write_checkpoint

TOKENS = [3, 1, 4, 15, 9, 26, 5, 35, 8, 9, 7, 9]


def test_a_pack_without_fusing_says_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_checkpoint(tmp_path / "model")
    found, specs = {}, {}
    for fuse in (True, False):
        options = CompileOptions(str(tmp_path / "model"), quant="f32", output=tmp_path / f"{fuse}.fpk", fuse=fuse, prove=not fuse)
        pack = compile_model(options)
        with open_pack(pack, trust=True) as opened:
            specs[fuse] = {kernel.spec for kernel in build_of(opened.manifest).kernels}
            assert opened.manifest.provenance.options.get("fuse", "yes") == ("yes" if fuse else "no")
        with LLM(str(pack), trust=True, max_num_seqs=1) as llm:
            found[fuse] = llm.logits(TOKENS)
        assert main(["explain", str(pack)]) == 0
        assert ("\ngeneric  " in capsys.readouterr().out) == (not fuse)
    assert {"map", "reduce"} <= specs[False] and not {"map", "reduce", "rms_norm"} & (specs[False] & specs[True])
    np.testing.assert_allclose(found[True], found[False], rtol=1e-4, atol=1e-4)


def test_what_may_be_left_out() -> None:
    names = [stage.name for stage in PIPELINE if stage.faster]
    assert names == ["fuse_norm", "fuse_rope", "fuse_mlp", "merge_linear", "fuse_residual"]
