"""A survey gives findings for any model, never an exception: transformers' own modules, and forms without a plan."""

from __future__ import annotations

import json
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from ferrum.codegen.driver import check_model
from ferrum.codegen.options import CompileOptions
from ferrum.errors import FerrumError
from ferrum.graphs.findings import Finding
from ferrum.graphs.frontend.torch_export import import_module
from ferrum.graphs.models.blocks import Attention, Decoder
from ferrum.graphs.models.config import ModelConfig, from_hf
from ferrum.graphs.survey import survey

SMALL: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128, "pad_token_id": None, "bos_token_id": None,
    "eos_token_id": None,
}  # fmt: skip
_EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
# What a configuration needs besides, or must not be given.
MORE: dict[str, dict[str, Any]] = {"mixtral": _EXPERTS, "qwen3_moe": _EXPERTS, "gpt2": _GPT}
MORE["gpt_neo"] = {"attention_types": [[["global", "local"], 1]], "num_layers": 2}
MORE["cwm"] = {"bos_token_id": 1, "eos_token_id": 2}
QUICK = ("llama", "mixtral", "gemma2")
TRACED = ("phi3", "gpt2", "gpt_neox")
# One of each kind of layer; ``make coverage`` checks every type there is.
LONG = ("gemma", "gemma3_text", "qwen3_moe", "phi", "cohere", "glm", "starcoder2", "stablelm", "olmo3", "smollm3", "granite",
        "nemotron", "persimmon", "opt", "gpt_neo", "biogpt", "cwm", "diffllama")  # fmt: skip
COMPLETE = ("llama", "stablelm", "gemma", "starcoder2", "phi")
# Whose layers differ; of the others one is like the next.
ALTERNATING = ("gemma3_text", "olmo3", "cwm", "smollm3", "gpt_neo")


class Logits(nn.Module):
    """Token ids to logits, which is what the frontend takes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(input_ids=tokens, use_cache=False).logits


def surveyed(kind: str, layers: int = 2) -> tuple[Finding, ...]:
    values = SMALL | MORE.get(kind, {})
    values["n_layer" if "n_layer" in values else "num_hidden_layers"] = layers
    config = transformers.AutoConfig.for_model(kind, **values)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    return survey(lambda: import_module(Logits(model), name=kind))


@pytest.fixture(autouse=True)
def no_packed_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks of several sequences in one row would be the first finding of every model, and the last."""
    monkeypatch.setattr(transformers.masking_utils, "find_packed_sequence_indices", lambda *args, **kwargs: None)


@pytest.mark.parametrize("kind", [*QUICK, *(pytest.param(kind, marks=pytest.mark.slow) for kind in (*TRACED, *LONG))])
def test_a_model_of_transformers_gives_findings(kind: str) -> None:
    try:
        found = surveyed(kind, 1 if kind in LONG and kind not in ALTERNATING else 2)
    except FerrumError as error:
        assert kind in LONG and error.code == "export-failed" and "\n" not in str(error)
    else:
        assert all(f.what and "\n" not in str(f) for f in found)
        assert not found or kind not in COMPLETE


@pytest.mark.parametrize("name", ("MixtralForCausalLM", "Gemma3ForCausalLM", "Phi3ForCausalLM"))
def test_a_folder_of_a_family_that_is_not_there_is_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SMALL | {"architectures": [name]}))
    with pytest.raises(FerrumError) as caught:
        check_model(CompileOptions(str(tmp_path)))
    assert caught.value.code == "model-unsupported" and "\n" not in str(caught.value) and name in str(caught.value)


def small() -> ModelConfig:
    return from_hf(SMALL | {"architectures": ["LlamaForCausalLM"]})


class Headless(Decoder):
    """Ends in the norm."""

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x, *self.rotary(tokens.shape[1]))
        return self.norm(x)


class Bigrams(nn.Module):
    """No attention at all."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.lm_head = nn.Embedding(64, 32), nn.Linear(32, 64, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.lm_head(self.embedding(tokens))


def uneven(**changed: int) -> Decoder:
    """A decoder whose second layer has other heads."""
    config = small()
    model = Decoder(config)
    model.layers[1].attention = Attention(replace(config, **changed), 1)
    model.layers[1].attention.out = nn.Linear(replace(config, **changed).num_heads * config.head_dim, 32, bias=False)
    return model


@pytest.mark.parametrize(
    ("model", "what"),
    [
        (lambda: Headless(small()), "a graph that does not end in a linear"),
        (Bigrams, "a model without causal attention"),
    ],
)
def test_a_form_without_a_plan_is_a_finding(model: Any, what: str) -> None:
    with torch.device("meta"):
        module = model().eval()
    assert [f.what for f in survey(lambda: import_module(module, checkpoint_name=lambda name: name))] == [what]


@pytest.mark.parametrize("changed", [{"num_kv_heads": 1}, {"num_heads": 2}])
def test_layers_may_differ_in_their_heads(changed: dict[str, int]) -> None:
    with torch.device("meta"):
        module = uneven(**changed).eval()
    assert survey(lambda: import_module(module, checkpoint_name=lambda name: name)) == ()
