"""A family is one record: what its checkpoint calls things, and what it joins, needs no change anywhere else."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from ferrum import families
from ferrum.families import FAMILIES, Family
from ferrum.graphs.expressions.expression import Rows, Tensor, tensors
from ferrum.graphs.frontend.torch_export import import_module
from ferrum.graphs.models.config import from_hf
from ferrum.graphs.models.registry import build, checkpoint_sources
from ferrum.graphs.pipeline import run_pipeline
from tests.codegen.folders import compile_folder, save

LLAMA = next(family for family in FAMILIES if family.name == "llama")
# All that a family with a fused qkv and a fused gate and up adds.
PHI3 = Family(
    name="phi3",
    architectures=("Phi3ForCausalLM",),
    defaults=LLAMA.defaults | {"vocab_size": 32064, "intermediate_size": 8192, "rms_norm_eps": 1e-5},
    window="all",
    joined={
        "model.layers.{}.self_attn.qkv_proj.*": (
            "layers.{}.attention.query.*", "layers.{}.attention.key.*", "layers.{}.attention.value.*",
        ),
        "model.layers.{}.mlp.gate_up_proj.*": ("layers.{}.mlp.gate.*", "layers.{}.mlp.up.*"),
    },
)  # fmt: skip
VALUES: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "sliding_window": 9, "pad_token_id": None,
    "bos_token_id": None, "eos_token_id": None, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}  # fmt: skip


@pytest.fixture
def phi3() -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    config = transformers.Phi3Config(**VALUES, attn_implementation="eager")
    model = transformers.Phi3ForCausalLM(config).eval().float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.15)
    return model


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The record where the others are."""
    for function in (from_hf, checkpoint_sources):
        monkeypatch.setattr(function, "__defaults__", ((*families.FAMILIES, PHI3),))


def test_a_fused_checkpoint_is_one_record(
    phi3: transformers.PreTrainedModel, recorded: None, tmp_path: Path
) -> None:
    from ferrum import LLM

    folder = save(phi3, tmp_path / "phi3")
    pack = compile_folder(folder, "f32", prove=True)
    tokens = torch.randint(0, 96, (1, 40), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = phi3(tokens).logits[0].numpy()
    with LLM(pack) as llm:
        got = llm.logits(tokens[0].tolist())
    assert np.abs(got - expected).max() / np.abs(expected).max() < 1e-5


def test_what_the_checkpoint_joins_is_not_cut_where_kernels_join_it_again(recorded: None) -> None:
    config = from_hf(VALUES | {"architectures": ["Phi3ForCausalLM"]})
    module = build(config)
    graph = run_pipeline(import_module(module, config, "phi3", checkpoint_sources(module)))
    by_name = {tensor.name: param.weight for param in graph.params if param.weight for tensor in tensors(param.weight)}
    for layer in (0, 1):
        for tensor in ("self_attn.qkv_proj", "mlp.gate_up_proj"):
            assert isinstance(by_name[f"model.layers.{layer}.{tensor}.weight"], Tensor)


def test_parts_lie_one_after_the_other(recorded: None) -> None:
    module = build(from_hf(VALUES | {"architectures": ["Phi3ForCausalLM"]}))
    where = checkpoint_sources(module)
    key = where("layers.1.attention.key.weight")
    assert isinstance(key, Rows) and (key.axis, key.start, key.stop) == (0, 64, 96)
    assert key.source == Tensor("model.layers.1.self_attn.qkv_proj.weight", (128, 64))
    assert where("layers.1.attention.out.weight") == "model.layers.1.self_attn.o_proj.weight"
    with pytest.raises(KeyError):
        checkpoint_sources(module, (replace(PHI3, tensors={}, joined={}),))("layers.0.nothing.weight")


def test_names_of_records_do_not_meet() -> None:
    architectures = [name for family in FAMILIES for name in family.architectures]
    aliases = [alias for family in FAMILIES for alias in family.aliases] + list(families.OTHER_ALIASES)
    assert len(set(architectures)) == len(architectures) and len({f.name for f in FAMILIES}) == len(FAMILIES)
    assert len(set(aliases)) == len(aliases) and all(alias == alias.lower() for alias in aliases)
