"""Whole models: through torch, ONNX and .pt2 they are the same graph for the machine, and give the same logits."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
import shutil
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from ferrum import LLM
from ferrum.codegen.driver import check_model, compile_model
from ferrum.codegen.job import open_job
from ferrum.codegen.options import CompileOptions
from ferrum.codegen.stages import trace
from ferrum.errors import FerrumError
from ferrum.graphs.frontend.exported import import_exported
from ferrum.graphs.frontend.onnx import import_onnx
from ferrum.graphs.interpret import SourceWeights, reference_logits
from ferrum.graphs.ir import Graph
from ferrum.graphs.pipeline import run_pipeline
from ferrum.graphs.weights import open_checkpoint
from ferrum.graphs.weights.saved import folder_of, saved_graph
from tests.conftest import CommandLine
from tests.graphs.tiny_models import random_model, tiny_config, tiny_model
from tests.onnx.genai import Builder
from tests.onnx.maker import TOKENS, evaluated, plain, put, to_onnx, to_pt2

KINDS = ("llama", "qwen3", "gpt_neox", "gemma2", "olmo2", "phi3")
FORMS = ("onnx20", "onnx23", "pt2")
QUICK = {("llama", "pt2")}  # the exporter of ONNX takes many seconds
SLOW = {("llama", "onnx23"), ("qwen3", "onnx20"), ("gpt_neox", "onnx23"), ("gemma2", "pt2")}  # each form and kind of rotation


def marks(case: tuple[str, str]) -> tuple[pytest.MarkDecorator, ...]:
    return () if case in QUICK else (pytest.mark.slow,) if case in SLOW else (pytest.mark.sweep,)


ALL = [pytest.param(kind, form, marks=marks((kind, form))) for kind in KINDS for form in FORMS]


def written(kind: str, form: str, folder: Path) -> tuple[Path, np.ndarray, Path]:
    """A file with the model's configuration beside it, its logits, and the model's plain folder."""
    module, own, wanted = plain(kind, folder / "own")
    path = folder / "file" / ("model.pt2" if form == "pt2" else "model.onnx")
    made = to_pt2(module, path) if form == "pt2" else to_onnx(module, path, int(form.removeprefix("onnx")))
    shutil.copy(own / "config.json", path.parent)
    return made, wanted, own


def finished(graph: Graph) -> Graph:
    return run_pipeline(graph)


def ops(graph: Graph) -> Counter[str]:
    return Counter(node.op for node in graph.nodes)


def logits_of(graph: Graph, path: Path) -> np.ndarray:
    """Of a finished graph, sequence by sequence."""
    with closing(open_checkpoint(path)) as checkpoint:
        return np.stack([reference_logits(graph, row.tolist(), SourceWeights(checkpoint)) for row in TOKENS])


@pytest.mark.parametrize(("kind", "form"), ALL)
def test_a_file_is_the_model_that_its_folder_is(kind: str, form: str, tmp_path: Path) -> None:
    path, wanted, own = written(kind, form, tmp_path)
    graph = import_exported(path) if form == "pt2" else import_onnx(path)
    np.testing.assert_allclose(evaluated(graph, path), wanted, rtol=1e-4, atol=1e-4)
    done = finished(graph)
    np.testing.assert_allclose(logits_of(done, path), wanted, rtol=1e-4, atol=1e-4)
    job = open_job(CompileOptions(str(own), stop_after="import"), lambda stage, done, total: None)
    assert ops(done) == ops(finished(trace(job)))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["onnx20", "pt2"])
def test_a_pack_of_a_file_runs(form: str, tmp_path: Path) -> None:
    path, wanted, _ = written("llama", form, tmp_path)
    for given in (path, path.parent):
        pack = compile_model(CompileOptions(str(given), quant="f32", output=tmp_path / "m.fpk", prove=given == path))
        with LLM(pack, prefix_cache=False) as llm:
            for row, logits in zip(TOKENS, wanted, strict=True):
                np.testing.assert_allclose(llm.logits(row.tolist()), logits, rtol=1e-4, atol=1e-4)


def genai(folder: Path, quantize: str = "", change: dict[str, Any] | None = None) -> tuple[Path, np.ndarray]:
    config = tiny_config("llama")
    config.update({"intermediate_size": 64, "hidden_size": 64 if quantize != "points" else 256, **(change or {})})
    if quantize == "points":
        config.update({"intermediate_size": 256, "num_attention_heads": 32})
    inner = random_model(config)
    made = Builder(inner, quantize).built()
    path = put(folder, made, config={"model_type": "llama", "max_position_embeddings": 128, "vocab_size": 64})
    with torch.no_grad():
        return path, inner(input_ids=torch.tensor(TOKENS), use_cache=False).logits.numpy()


@pytest.mark.parametrize("quantize", ["", "middle", "points"])
def test_a_model_of_onnx_runtime_s_builder(quantize: str, tmp_path: Path) -> None:
    """Past and present leave no trace: what is behind a token is a state, and four bits stay four bits."""
    path, wanted = genai(tmp_path, quantize)
    graph = import_onnx(path)
    np.testing.assert_allclose(evaluated(graph, path), wanted, rtol=1e-4, atol=1e-4)
    done = finished(graph)
    np.testing.assert_allclose(logits_of(done, path), wanted, rtol=1e-4, atol=1e-4)
    assert ops(done)["paged_attention"] == 2 and len(done.states) == 4
    packed = [param for param in done.params if param.weight is not None and param.weight.type.blocked]
    assert bool(packed) == bool(quantize)


class Cached(torch.nn.Module):
    """As ``optimum`` exports: a cache as inputs and outputs, a mask over all that is in it."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, input_ids: Any, attention_mask: Any, position_ids: Any, past: list[Any]) -> Any:
        from transformers import DynamicCache

        cache = DynamicCache(config=self.inner.config)
        for layer in range(len(past) // 2):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        out = self.inner(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, past_key_values=cache)
        return (out.logits, *(rows for layer in cache.layers for rows in (layer.keys, layer.values)))


def exported_with_cache(folder: Path) -> tuple[Path, np.ndarray]:
    inner = tiny_model("llama")
    inner.set_attn_implementation("eager")  # type: ignore[operator]
    past = [torch.randn(2, 2, 3, 8) for _ in range(4)]
    tokens = torch.zeros((2, 5), dtype=torch.int64)
    places = torch.arange(3, 8).expand(2, 5)
    auto = torch.export.Dim.DYNAMIC
    shapes = ({0: auto, 1: auto}, {0: auto, 1: auto}, {0: auto, 1: auto}, [{0: auto, 2: auto}] * 4)
    names = [f"past_key_values.{i}.{kind}" for i in range(2) for kind in ("key", "value")]
    folder.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        program = torch.onnx.export(
            Cached(inner).eval(), (tokens, torch.ones((2, 8), dtype=torch.int64), places, past), dynamo=True, opset_version=20,
            dynamic_shapes=shapes, input_names=["input_ids", "attention_mask", "position_ids", *names], verbose=False,
            output_names=["logits", *(name.replace("past_key_values", "present") for name in names)],
        )  # fmt: skip
        assert program is not None
        program.save(str(folder / "model.onnx"))
        return folder / "model.onnx", inner(input_ids=torch.tensor(TOKENS), use_cache=False).logits.numpy()


@pytest.mark.slow
def test_an_export_with_a_cache_is_the_model_without(tmp_path: Path) -> None:
    path, wanted = exported_with_cache(tmp_path)
    graph = import_onnx(path)
    np.testing.assert_allclose(evaluated(graph, path), wanted, rtol=1e-4, atol=1e-4)
    done = finished(graph)
    np.testing.assert_allclose(logits_of(done, path), wanted, rtol=1e-4, atol=1e-4)
    assert ops(done)["paged_attention"] == 2


def test_a_check_names_what_is_not_read(tmp_path: Path, ferrum: CommandLine) -> None:
    path, _ = genai(tmp_path)
    made = onnx.load(path)
    made.graph.node[-1].op_type = "Einsum"
    put(tmp_path, made)
    found = check_model(CompileOptions(str(path)))
    assert [(f.what, f.module, f.nearest) for f in found] == [("Einsum of ONNX", "the_MatMul", "MatMul and Transpose")]
    done = ferrum("check", str(path))
    assert done.returncode == 1 and done.stdout == "Einsum of ONNX · the_MatMul · MatMul and Transpose\n"


def test_a_file_without_its_configuration_says_so(tmp_path: Path, ferrum: CommandLine) -> None:
    path, _ = genai(tmp_path)
    (tmp_path / "config.json").unlink()
    done = ferrum("compile", str(path))
    assert done.returncode == 1 and "there is no such file, nor genai_config.json" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    values = {"model": {"context_length": 64, "type": "llama", "vocab_size": 64, "eos_token_id": [2, 5]}}
    (tmp_path / "genai_config.json").write_text(json.dumps(values))
    job = open_job(CompileOptions(str(path)), lambda stage, done, total: None)
    assert (job.config.family, job.max_model_len) == ("llama", 64)


def test_a_file_does_not_embed(tmp_path: Path) -> None:
    path, _ = genai(tmp_path)
    with pytest.raises(FerrumError, match="does not embed"):
        open_job(CompileOptions(str(path), pooling="mean"), lambda stage, done, total: None)


def test_which_file_of_a_folder_is_the_model(tmp_path: Path) -> None:
    put(tmp_path / "onnx", b"x", "model_q4.onnx", {})
    (tmp_path / "onnx" / "config.json").rename(tmp_path / "config.json")
    assert saved_graph(tmp_path) == tmp_path / "onnx" / "model_q4.onnx"
    assert folder_of(tmp_path / "onnx" / "model_q4.onnx") == tmp_path
    put(tmp_path / "onnx", b"x", "model.onnx")
    assert saved_graph(tmp_path) == tmp_path / "onnx" / "model.onnx"
    (tmp_path / "onnx" / "model.onnx").rename(tmp_path / "onnx" / "model_int8.onnx")
    with pytest.raises(FerrumError, match="2 models are in it: model_int8.onnx, model_q4.onnx"):
        saved_graph(tmp_path)
    put(tmp_path, b"x", "model.safetensors")
    assert saved_graph(tmp_path) is None
