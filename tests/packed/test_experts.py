"""Experts in MXFP4, as gpt-oss stores them."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from ferrum.codegen.driver import compile_model
from ferrum.codegen.options import CompileOptions
from ferrum.graphs.expressions.evaluate import ExprRows
from ferrum.graphs.weights import open_checkpoint
from ferrum.pack.reader import open_pack
from tests.graphs.tiny_models import MORE, SMALL, random_model
from tests.packed.folders import Folder, check_answers

EXPERTS = ("gate_up_proj", "down_proj")


def gpt_oss(path: Path) -> Folder:
    """Its experts are what the blocks mean, all other matrices bfloat16 numbers."""
    values = SMALL | MORE["gpt_oss"] | {"hidden_size": 64, "intermediate_size": 96}
    model = random_model(transformers.AutoConfig.for_model("gpt_oss", **values))
    state = model.state_dict()
    for name, weight in state.items():
        if weight.ndim == 2:
            weight.copy_(weight.bfloat16().float())
        if name.endswith(EXPERTS):
            experts, k, n = weight.shape
            blocks = torch.randint(0, 256, (experts, n, k // 32, 16), dtype=torch.uint8)
            exponents = torch.randint(122, 125, blocks.shape[:3], dtype=torch.uint8)
            weight.copy_(convert_moe_packed_tensors(blocks, exponents, dtype=torch.float32))
            state[name] = blocks, exponents
    model.save_pretrained(path)  # type: ignore[operator]
    folder = Folder(path, {}, model)
    tensors = load_file(path / "model.safetensors")
    for name, parts in state.items():
        if isinstance(parts, tuple):
            tensors.pop(name)
            tensors |= {f"{name}_blocks": parts[0], f"{name}_scales": parts[1]}
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    folder.configure({"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]})
    return folder


def test_blocks_mean_what_transformers_makes_of_them(tmp_path: Path) -> None:
    folder = gpt_oss(tmp_path / "model")
    with closing(open_checkpoint(folder.path)) as checkpoint:
        found = [name for name in checkpoint.meanings if name.endswith(EXPERTS)]
        assert len(found) == 4
        for name in found:
            values = ExprRows(checkpoint.meanings[name], checkpoint).values(slice(1, 3))
            assert np.array_equal(np.asarray(values), folder.model.state_dict()[name][1:3].numpy())


@pytest.mark.slow
def test_a_pack_of_experts_keeps_their_blocks(tmp_path: Path) -> None:
    folder = gpt_oss(tmp_path / "model")
    options = CompileOptions(str(folder.path), activations="f32", kv_dtype="f32", output=tmp_path / "x.fpk")
    pack = compile_model(options)
    with open_pack(pack, trust=True) as opened:
        assert opened.manifest.provenance.blocks == "fp4 stays as it is (int5-g32)"
    check_answers(pack, folder)
