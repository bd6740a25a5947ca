"""Model folders of types without a record: traced from `transformers`' own code, with weights under the checkpoint's names."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from ferrum import LLM
from ferrum.codegen.driver import check_model, compile_model
from ferrum.codegen.job import open_job
from ferrum.codegen.options import CompileOptions
from ferrum.codegen.stages import trace
from ferrum.errors import FerrumError
from ferrum.graphs.expressions.expression import Tensor
from ferrum.graphs.findings import UnsupportedOps
from ferrum.graphs.frontend.torch_export import import_module
from ferrum.graphs.frontend.traced import empty_model, refuse_unknown, trace_module
from ferrum.graphs.interpret import SourceWeights, interpret
from ferrum.graphs.models.config import from_hf
from ferrum.graphs.models.registry import build, checkpoint_sources
from ferrum.graphs.models.traced_config import TracedConfig
from ferrum.graphs.pipeline import run_pipeline
from ferrum.graphs.text import print_graph
from ferrum.graphs.weights import open_checkpoint
from ferrum.pack.reader import read_manifest
from tests.graphs.tiny_models import tiny_model

TOKENS = [[3, 1, 4, 15, 9, 26, 5, 35, 8]]
LONG = ("gemma2", "gpt_oss", "qwen3_moe", "gpt2")
FOLDERS = ["mixtral", "dots1", *(pytest.param(kind, marks=pytest.mark.slow) for kind in LONG)]


def saved(kind: str, folder: Path) -> tuple[Path, np.ndarray]:
    """A folder as `transformers` saves it, and the logits of ``TOKENS``."""
    model = tiny_model(kind)
    model.save_pretrained(folder)  # type: ignore[operator]
    with torch.no_grad():
        return folder, model(input_ids=torch.tensor(TOKENS), use_cache=False).logits.numpy()


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_is_traced_and_its_checkpoint_is_read(kind: str, tmp_path: Path) -> None:
    folder, wanted = saved(kind, tmp_path / "model")
    job = open_job(CompileOptions(str(folder), stop_after="import"), lambda stage, done, total: None)
    graph = trace(job)
    assert all(param.value.shape == () or "meta" not in param.name for param in graph.params)
    with closing(open_checkpoint(folder)) as checkpoint:
        found = interpret(graph, {"tokens": np.array(TOKENS)}, SourceWeights(checkpoint))[graph.outputs[0]]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_a_check_finds_nothing_missing_on_any_device(tmp_path: Path) -> None:
    folder, _ = saved("mixtral", tmp_path / "model")
    for target in ("cuda-sm89", "metal-m1", "cpu-avx2"):
        assert check_model(CompileOptions(str(folder), target=target)) == ()


@pytest.mark.slow
def test_a_type_without_a_record_becomes_a_pack(tmp_path: Path) -> None:
    folder, wanted = saved("seed_oss", tmp_path / "model")
    assert check_model(CompileOptions(str(folder))) == ()
    pack = compile_model(CompileOptions(str(folder), quant="f32", output=tmp_path / "x.fpk"))
    assert read_manifest(pack).provenance.options["traced_by"].startswith("transformers ")
    with LLM(str(pack), trust=True, max_num_seqs=2) as llm:
        np.testing.assert_allclose(llm.logits(TOKENS[0]), wanted[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["llama", pytest.param("qwen2", marks=pytest.mark.slow), "qwen3"])
def test_a_record_and_a_trace_give_one_graph(kind: str) -> None:
    model = tiny_model(kind)
    config = from_hf(model.config.to_dict() | {"architectures": [type(model).__name__]})  # type: ignore[operator, union-attr]
    module = build(config)
    own, traced = (
        print_graph(run_pipeline(graph), origins=False).splitlines()
        for graph in (import_module(module, config, kind, checkpoint_sources(module)), trace_module(model, kind))
    )
    assert sorted(own) == sorted(traced)  # parameters are in the order in which each module has them
    assert [line for line in own if not line.startswith("param ")] == [line for line in traced if not line.startswith("param ")]


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"model_type": "mixtral", "architectures": ["Mystery"]}, "model-unsupported"),
        ({"model_type": "mystery", "architectures": ["Mystery"], "auto_map": {"AutoModel": "x.Y"}}, "model-unsupported"),
        ({"model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "quantization_config": {}}, "config-unsupported"),
        ({"model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "max_position_embeddings": -1}, "config-unsupported"),
    ],
)
def test_what_cannot_be_traced_is_one_line(values: dict[str, object], code: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(FerrumError) as caught:
        open_job(CompileOptions(str(tmp_path), stop_after="import"), lambda stage, done, total: None)
    assert caught.value.code == code and "\n" not in str(caught.value)


def test_a_configuration_that_no_module_takes_is_one_line(tmp_path: Path) -> None:
    values = {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "hidden_size": "many"}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(FerrumError) as caught:
        trace(open_job(CompileOptions(str(tmp_path), stop_after="import"), lambda stage, done, total: None))
    assert caught.value.code == "config-unsupported" and "\n" not in str(caught.value)


def test_what_a_configuration_and_a_checkpoint_say_besides() -> None:
    """Infinity, which JSON has no word for, is read; a tensor in a module that does not have it is told, an unread one is not."""
    from transformers import Mamba2Config

    own = Mamba2Config(vocab_size=64, hidden_size=16, num_heads=4, head_dim=8, state_size=8, n_groups=2, num_hidden_layers=1)
    values = json.loads(own.to_json_string())
    assert values["time_step_limit"][1] != float("inf")
    model = empty_model(TracedConfig("mamba2", values, 64, architecture="Mamba2ForCausalLM"), "m")
    assert model.config.time_step_limit[1] == float("inf")  # type: ignore[union-attr]
    known = next(iter(model.state_dict()))
    refuse_unknown(model, {known: Tensor(known, (1,))})
    strange = f"{known.rpartition('.')[0]}.other"
    with pytest.raises(UnsupportedOps, match="other is there, but the model does not use it"):
        refuse_unknown(model, {strange: Tensor(strange, (1,))})
