"""Folders whose checkpoint is not laid out as the model is: what `transformers` loads of them is what is compiled."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from ferrum.codegen.driver import check_model, compile_model
from ferrum.codegen.job import open_job
from ferrum.codegen.options import CompileOptions
from ferrum.codegen.stages import trace
from ferrum.errors import FerrumError
from ferrum.graphs.interpret import SourceWeights, interpret
from ferrum.graphs.weights import open_checkpoint
from tests.graphs.tiny_models import tiny_model

TOKENS = [[3, 1, 4, 15, 9, 26, 5, 35, 8]]
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
Tensors = dict[str, torch.Tensor]
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def folder_of(kind: str, folder: Path, tied: bool, change: Callable[[Tensors], Tensors], **config: Any) -> Path:
    """A saved model whose configuration and tensors were changed."""
    model: Any = tiny_model(kind)
    model.save_pretrained(folder)
    values = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": tied} | config
    (folder / "config.json").write_text(json.dumps(values))
    tensors = {name: data.contiguous() for name, data in change(load_file(folder / SINGLE)).items()}
    save_file(tensors, folder / SINGLE, {"format": "pt"})
    return folder


def check(folder: Path) -> None:
    reference: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        wanted = reference(input_ids=torch.tensor(TOKENS), use_cache=False).logits.numpy()
    assert check_model(CompileOptions(str(folder))) == ()
    graph = trace(open_job(CompileOptions(str(folder), stop_after="import"), lambda stage, done, total: None))
    with closing(open_checkpoint(folder)) as checkpoint:
        found = interpret(graph, {"tokens": np.array(TOKENS)}, SourceWeights(checkpoint))[graph.outputs[0]]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def only_the_head(tensors: Tensors) -> Tensors:
    return {HEAD if name == EMBEDDING else name: data for name, data in tensors.items()}


def another_head(tensors: Tensors) -> Tensors:
    return tensors | {HEAD: torch.randn(tensors[EMBEDDING].shape, generator=torch.Generator().manual_seed(1))}


def same_head(tensors: Tensors) -> Tensors:
    return tensors | {HEAD: tensors[EMBEDDING].clone()}


def without_prefix(tensors: Tensors) -> Tensors:
    return {name.removeprefix("model."): data for name, data in tensors.items()}


@pytest.mark.parametrize("change", [only_the_head, another_head, same_head])
@pytest.mark.parametrize("kind", ["llama", "olmo2"])
def test_a_tied_head_is_what_the_checkpoint_has(kind: str, change: Callable[[Tensors], Tensors], tmp_path: Path) -> None:
    check(folder_of(kind, tmp_path / "model", True, lambda tensors: change({n: t for n, t in tensors.items() if n != HEAD})))


@pytest.mark.parametrize("named", ["LlamaForCausalLM", "LlamaModel"])
def test_a_checkpoint_of_the_inner_model(named: str, tmp_path: Path) -> None:
    check(folder_of("llama", tmp_path / "model", named == "LlamaModel", without_prefix, architectures=[named]))


def test_the_prefix_may_be_missing_where_the_head_is_another(tmp_path: Path) -> None:
    check(folder_of("llama", tmp_path / "model", True, lambda tensors: without_prefix(another_head(tensors))))


def test_an_index_beside_a_single_file_is_of_other_files(tmp_path: Path) -> None:
    folder = folder_of("llama", tmp_path / "model", False, dict)
    names = load_file(folder / SINGLE)
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, "model-00001-of-00002.safetensors")}))
    check(folder)


def test_an_index_may_leave_out_what_a_file_has(tmp_path: Path) -> None:
    folder = folder_of("llama", tmp_path / "model", False, dict)
    tensors = load_file(folder / SINGLE)
    (folder / SINGLE).unlink()
    table = {}
    for number, names in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2]), 1):
        shard = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in names}, folder / shard, {"format": "pt"})
        table |= dict.fromkeys(names, shard)
    del table["model.norm.weight"]
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": table}))
    check(folder)


@pytest.mark.parametrize(("name", "value", "words"), [
    ("model.layers.1.mlp.down_proj.weight", float("nan"), "holds NaN"), ("model.norm.weight", float("nan"), "holds NaN"),
    (EMBEDDING, float("-inf"), "holds an infinity"),
])  # fmt: skip
def test_weights_that_are_no_numbers_are_refused_by_name(name: str, value: float, words: str, tmp_path: Path) -> None:
    def change(tensors: Tensors) -> Tensors:
        tensors[name].view(-1)[-1] = value
        return tensors

    folder, pack = folder_of("llama", tmp_path / "model", False, change), tmp_path / "x.fpk"
    with pytest.raises(FerrumError, match=f"^{name} {words}") as caught:
        compile_model(CompileOptions(str(folder), quant="int8", prove=False, output=pack))
    assert caught.value.code == "checkpoint-corrupt" and not pack.exists()
