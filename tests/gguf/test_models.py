"""Models in GGUF files compute what `transformers` computes with the weights that were converted."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import gguf.quants
import numpy as np
import pytest
import torch

from ferrum.codegen.driver import check_model, compile_model
from ferrum.codegen.job import open_job
from ferrum.codegen.options import CompileOptions
from ferrum.codegen.stages import trace
from ferrum.errors import FerrumError
from ferrum.graphs.expressions.evaluate import ExprRows
from ferrum.graphs.gguf.architectures import ARCHITECTURES
from ferrum.graphs.interpret import SourceWeights, interpret
from ferrum.graphs.ir import Graph
from ferrum.graphs.models.registry import config_values
from ferrum.graphs.pipeline import run_pipeline
from ferrum.graphs.weights import WeightsMismatch, match, open_checkpoint
from tests.gguf.k_blocks import K_KINDS, k_blocks
from tests.gguf.maker import SIZES, converted, metadata, random_blocks, tensors_of, write
from tests.graphs.tiny_models import tiny_model

TOKENS = [[3, 1, 4, 15, 9, 26, 5, 35, 8]]
KINDS = ["gemma2"]  # a llama's blocks are tried below
MORE = [
    "llama",
    "gpt2",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma3_text",
    "phi3",
    "olmo2",
    "granite",
    "smollm3",
    "starcoder2",
    "stablelm",
]


def graph_of(path: Path) -> Graph:
    return trace(open_job(CompileOptions(str(path), stop_after="import"), lambda stage, done, total: None))


def logits_of(graph: Graph, path: Path) -> np.ndarray[Any, Any]:
    with closing(open_checkpoint(path)) as checkpoint:
        match(graph, checkpoint)
        return interpret(graph, {"tokens": np.array(TOKENS)}, SourceWeights(checkpoint))[graph.outputs[0]]


def wanted_of(model: torch.nn.Module) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        return model(input_ids=torch.tensor(TOKENS), use_cache=False).logits.numpy()


def test_every_architecture_is_tried() -> None:
    assert sorted({*KINDS, *MORE}) == sorted(record.kind for record in ARCHITECTURES)


@pytest.mark.parametrize("kind", [*KINDS, *(pytest.param(kind, marks=pytest.mark.slow) for kind in MORE)])
def test_a_converted_model_is_the_model(kind: str, tmp_path: Path) -> None:
    model, path = converted(kind, tmp_path / "model.gguf")
    found = logits_of(graph_of(path), path)
    np.testing.assert_allclose(found, wanted_of(model), rtol=1e-4, atol=1e-4)


def test_blocks_stay_in_the_graph_until_weights_are_written(tmp_path: Path) -> None:
    """q and k of a llama are permuted, gate and up are joined: their blocks pass all of it."""
    model, path = blocky_llama(tmp_path / "model.gguf")
    graph = run_pipeline(graph_of(path))
    blocked = {p.name: p.weight.type.blocked for p in graph.params if p.weight is not None and len(p.shape) == 2}
    assert [name for name, kind in blocked.items() if kind is None] == []
    assert {kind.scheme for kind in blocked.values() if kind} >= {"q4_k", "q6_k"}
    np.testing.assert_allclose(logits_of(graph_of(path), path), wanted_of(model), rtol=1e-4, atol=1e-4)


MIXED = {
    "attn_q": "q4_k", "attn_k": "q4_k", "attn_v": "q4_k", "attn_output": "q5_k", "ffn_down": "q6_k", "token_embd": "q8_0",
    "": "q4_k",
}  # fmt: skip
_QUANTIZED = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", *K_KINDS)  # of normal numbers; others are random bits


def blocky_llama(path: Path, kinds: Mapping[str, str] | None = None, tied: bool = False) -> tuple[torch.nn.Module, Path]:
    """A llama whose matrices are blocks of ``kinds`` ("" for those that are not named); its module has what the format's own
    package makes of them."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=256, intermediate_size=512, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=64, tie_word_embeddings=tied,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    tensors: dict[str, Any] = dict(tensors_of(model, "llama"))
    kinds, state = kinds or MIXED, model.state_dict()
    for number, (name, value) in enumerate(tensors.items()):
        if value.ndim < 2:
            continue
        kind = kinds.get(name.split(".")[-2], kinds[""])
        stored = gguf.GGMLQuantizationType[kind.upper()]
        raw = random_blocks(kind, *value.shape, seed=number)
        if kind in _QUANTIZED:
            normal = np.random.default_rng(number).normal(scale=0.05, size=value.shape).astype(np.float32)
            raw = k_blocks(kind, normal) if kind in K_KINDS else gguf.quants.quantize(normal, stored)
        tensors[name] = raw, kind
        values = gguf.quants.dequantize(raw, stored)
        if "attn_q" in name or "attn_k" in name:
            heads = 4 if "attn_q" in name else 2
            values = values.reshape(heads, values.shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(values.shape)
        state[_hf(name)].copy_(torch.from_numpy(values.copy()))
    return model, write(path, "llama", metadata(config, "llama"), tensors)


def _hf(name: str) -> str:
    parts = name.split(".")
    stem = ARCHITECTURES[0].tensors[".".join(["blk.{}", parts[2]]) if parts[0] == "blk" else parts[0]]
    return f"{stem.replace('{}', parts[1])}.weight"


def test_ropes_of_llama_3_are_found_again(tmp_path: Path) -> None:
    model = tiny_model("llama")
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 8192}  # fmt: skip
    config: Any = model.config
    turned, theta = config.head_dim, 500000.0
    config.rope_parameters = {**scaling, "rope_theta": theta}
    wavelengths = 2 * np.pi * theta ** (np.arange(0, turned, 2) / turned)
    smooth = np.clip((8192 / wavelengths - 1) / 3, 0, 1)
    factors = (1 / ((1 - smooth) / 8 + smooth)).astype(np.float32)
    values = metadata(config, "llama")
    path = write(tmp_path / "a.gguf", "llama", values, tensors_of(model, "llama") | {"rope_freqs.weight": factors})
    assert config_values(path)["rope_scaling"] == scaling
    path = write(tmp_path / "b.gguf", "llama", values, tensors_of(model, "llama") | {"rope_freqs.weight": factors + 0.3})
    with pytest.raises(FerrumError, match="rope_freqs.weight, which are not those of Llama 3"):
        config_values(path)


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"general.architecture": "mystery"}, "model-unsupported", "unknown architecture 'mystery'"),
        ({"llama.expert_count": 8}, "config-unsupported", r"llama\.expert_count = 8"),
        ({"llama.attention.head_count": 0}, "checkpoint-corrupt", "attention.head_count"),
        ({"llama.attention.head_count": "many"}, "checkpoint-corrupt", "attention.head_count is a str"),
        ({"llama.feed_forward_length": [48, 32]}, "config-unsupported", "differs from layer to layer"),
        ({"llama.rope.scaling.type": "longrope"}, "config-unsupported", "longrope"),
        ({"llama.attention.sliding_window": 7}, "config-unsupported", "attention.sliding_window = 7"),
        ({"llama.hidden_activation": "gelu"}, "config-unsupported", "hidden_activation = gelu"),
        ({"llama.attention.value_length": 4}, "config-unsupported", "heads of 8 for keys and 4 for values"),
        ({"general.type": "mmproj"}, "format-unsupported", "the vision or audio part"),
        ({"general.type": "adapter"}, "format-unsupported", "a LoRA adapter"),
    ],
)
def test_what_is_not_read_is_refused_by_name(change: dict[str, Any], code: str, words: str, tmp_path: Path) -> None:
    model = tiny_model("llama")
    values = metadata(model.config, "llama") | change
    architecture = values.pop("general.architecture", "llama")
    path = write(tmp_path / "model.gguf", architecture, values, tensors_of(model, "llama"))
    with pytest.raises(FerrumError, match=words) as caught:
        check_model(CompileOptions(str(path)))
    assert caught.value.code == code and "\n" not in str(caught.value)


def test_tensors_that_do_not_fit_are_said(tmp_path: Path) -> None:
    model = tiny_model("llama")
    values, tensors = metadata(model.config, "llama"), tensors_of(model, "llama")
    path = write(tmp_path / "a.gguf", "llama", values, tensors | {"blk.0.attn_sinks.weight": np.zeros(4, np.float32)})
    with pytest.raises(FerrumError, match="a llama does not use them, first blk.0.attn_sinks.weight"):
        check_model(CompileOptions(str(path)))
    small = {name: data for name, data in tensors.items() if name != "blk.1.ffn_up.weight"}
    path = write(tmp_path / "b.gguf", "llama", values, small)
    (finding,) = [finding for finding in check_model(CompileOptions(str(path))) if finding.source == "checkpoint"]
    assert "model.layers.1.mlp.up_proj.weight [48, 32] is missing" in finding.what
    path = write(tmp_path / "c.gguf", "llama", values, tensors | {"blk.1.ffn_up.weight": np.zeros((40, 32), np.float32)})
    with pytest.raises(WeightsMismatch, match=r"is \[40, 32\], expected \[48, 32\]"):
        check_model(CompileOptions(str(path)))


def test_a_head_of_its_own_is_used(tmp_path: Path) -> None:
    model, path = converted("llama", tmp_path / "a.gguf")
    assert not config_values(path)["tie_word_embeddings"]
    tensors = tensors_of(model, "llama")
    del tensors["output.weight"]
    path = write(tmp_path / "b.gguf", "llama", metadata(model.config, "llama"), tensors)
    assert config_values(path)["tie_word_embeddings"]


@pytest.mark.slow
def test_a_file_becomes_a_pack(tmp_path: Path) -> None:
    from ferrum import LLM

    model, path = blocky_llama(tmp_path / "model.gguf")
    pack = compile_model(CompileOptions(str(path), quant="f32", output=tmp_path / "x.fpk"))
    with LLM(str(pack), trust=True, max_num_seqs=2) as llm:
        found, wanted = llm.logits(TOKENS[0]), wanted_of(model)[0]
    assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_a_scale_beside_a_tensor_is_part_of_it(tmp_path: Path) -> None:
    """NVFP4 has one for each tensor; that of the inputs means nothing where inputs are not rounded."""
    raw = random_blocks("nvfp4", 32, 64)
    tensors = {
        "token_embd.weight": np.zeros((64, 32), np.float32), "blk.0.ffn_down.weight": (raw, "nvfp4"),
        "blk.0.ffn_down.scale": np.array([0.5], np.float32), "blk.0.ffn_down.input_scale": np.array([2.0], np.float32),
    }  # fmt: skip
    with open_checkpoint(write(tmp_path / "a.gguf", "llama", SIZES, tensors)) as checkpoint:
        expr = checkpoint.meanings["model.layers.0.mlp.down_proj.weight"]
        found = ExprRows(expr, checkpoint).values(slice(0, 32))
        assert set(checkpoint.meanings) == {"model.embed_tokens.weight", "model.layers.0.mlp.down_proj.weight"}
    np.testing.assert_array_equal(found, gguf.quants.dequantize(raw, gguf.GGMLQuantizationType.NVFP4) * np.float32(0.5))


@pytest.mark.parametrize(("pattern", "slides"), [([1, 0, 1], [True, False, True]), (3, [True, True, False])])
def test_layers_with_windows_are_those_that_the_file_says(pattern: Any, slides: list[bool], tmp_path: Path) -> None:
    sizes = {key.replace("llama", "gemma3"): value for key, value in SIZES.items()} | {"gemma3.block_count": 3}
    sizes |= {"gemma3.attention.sliding_window": 8, "gemma3.attention.sliding_window_pattern": pattern}
    path = write(tmp_path / "a.gguf", "gemma3", sizes, {"token_embd.weight": np.zeros((64, 32), np.float32)})
    kinds = {True: "sliding_attention", False: "full_attention"}
    assert config_values(path)["layer_types"] == [kinds[slide] for slide in slides]
