"""Packs of packed folders: what a format holds stays as it is, all else becomes bf16, and the model is the dequantized one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ferrum.codegen.driver import compile_model
from ferrum.codegen.layouts import parse_layout
from ferrum.codegen.options import CompileOptions
from ferrum.pack.reader import Pack, open_pack
from tests.packed.folders import METHODS, Folder, check_answers, folder_of

# The first is below; packs of the others would be like one of those that are made.
ONLY_READ = ("awq", "awq gemv", "gptq_v2", "fp8 of tensors", "modelopt", "auto-round")
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in METHODS if name not in ONLY_READ]
NOTES = {
    "compressed-tensors": ("packed4 stays as it is (int4s-g32)", "e4m3 becomes bf16", "fp4 stays as it is (int5-g32)"),
    "gptq": ("gptq8 stays as it is (int8-g32)", "gptq4 in an order of its own (desc_act) becomes bf16"),
    "awq": ("awq4 stays as it is (int4a-g32)",),
    "wide groups": ("packed5 stays as it is (int5-g128)", "packed2 stays as it is (int4s-g64)"),
    "fp8": ("e4m3 becomes bf16", "e5m2 becomes bf16", "scales of activations and caches are not used (input_scale)"),
    "bitsandbytes": ("table4 becomes bf16", "int8 becomes bf16"),
}


def rounded(values: torch.Tensor) -> torch.Tensor:
    return values.bfloat16().float()


def in_pack(folder: Folder, device: str) -> None:
    """The reference gets the weights that a pack is to have."""
    for name, weight in folder.model.state_dict().items():
        if weight.ndim == 2 and not (name in folder.made and getattr(folder.made[name], device)):
            weight.copy_(rounded(weight))


def check_weights(opened: Pack, model: torch.nn.Module) -> None:
    state = model.state_dict()
    for t in opened.manifest.tensors:
        if "_proj" in t.name:
            stem, _, kind = t.name.rpartition(".")
            head, _, joined = stem.rpartition(".")
            wanted = np.concatenate([state[f"{head}.{part}.{kind}"].numpy() for part in joined.split("+")])
            layout = parse_layout(t.layout, t.format, tuple(t.shape))
            assert np.array_equal(layout.decode(opened.weights[t.offset : t.offset + t.nbytes]), wanted), t.name


@pytest.mark.parametrize("method", ["awq", *SLOW])
def test_a_pack_is_the_dequantized_model(method: str, tmp_path: Path) -> None:
    folder = folder_of(METHODS[method], tmp_path / "model")
    in_pack(folder, "cpu")
    options = CompileOptions(str(folder.path), activations="f32", kv_dtype="f32", output=tmp_path / "x.fpk")
    pack = compile_model(options)  # proves itself against the interpreter
    with open_pack(pack, trust=True) as opened:
        check_weights(opened, folder.model)
        assert all(note in opened.manifest.provenance.blocks for note in NOTES[method]), opened.manifest.provenance.blocks
    check_answers(pack, folder)


@pytest.mark.slow
def test_a_gpu_s_pack_keeps_8_bit_floats_too(tmp_path: Path) -> None:
    folder = folder_of(METHODS["compressed-tensors"], tmp_path / "model", pick=5)
    in_pack(folder, "gpu")
    pack = compile_model(CompileOptions(str(folder.path), target="metal-m1", output=tmp_path / "x.fpk", prove=False))
    with open_pack(pack, trust=True) as opened:
        check_weights(opened, folder.model)
        assert "e4m3 stays as it is (fp8)" in opened.manifest.provenance.blocks
