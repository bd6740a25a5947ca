"""Mixtures of experts, traced from `transformers`' own code, as packs for the CPU."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ferrum import LLM, SamplingParams
from ferrum.codegen.driver import check_model
from ferrum.codegen.kernels.quantize import Quantize
from ferrum.codegen.layouts import parse_format
from ferrum.codegen.layouts.activations import act_for, parse_act
from ferrum.codegen.options import CompileOptions
from ferrum.codegen.prove import runs_here
from ferrum.codegen.target import TARGETS
from ferrum.graphs import numpy_index
from ferrum.graphs.interpret import reference_logits
from ferrum.graphs.ir import Node
from ferrum.graphs.numpy_ops import KERNELS
from ferrum.graphs.numpy_run import Array, Run
from ferrum.graphs.text import parse_graph
from ferrum.pack.reader import open_pack
from tests.codegen.folders import compile_folder
from tests.codegen.kernel_harness import InMemory
from tests.graphs.tiny_models import tiny_model

TOKENS = [3, 1, 4, 15, 9, 26, 5, 35, 8]
STEPS = 32
PLAINEST = [target.name for target in TARGETS if runs_here(target.arch, target.requires)][-1]  # without a product of bfloat16
KINDS = ["mixtral", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("qwen3_moe", "olmoe", "gpt_oss"))]


@pytest.mark.parametrize("kind", KINDS)
def test_experts_give_the_tokens_of_transformers(kind: str, tmp_path: Path) -> None:
    """Alone and in a batch, whose rows share experts."""
    model = tiny_model(kind)
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    if kind == KINDS[0]:  # a compile finds what a check would
        assert check_model(CompileOptions(str(tmp_path))) == ()
    tokens = list(TOKENS)
    with torch.no_grad():
        wanted = model(input_ids=torch.tensor([TOKENS]), use_cache=False).logits[0].numpy()
        for _ in range(STEPS):
            tokens.append(int(model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
    greedy = SamplingParams(temperature=0, max_tokens=STEPS, ignore_eos=True)
    with LLM(compile_folder(tmp_path), max_num_seqs=4) as llm:
        np.testing.assert_allclose(llm.logits(TOKENS), wanted, rtol=1e-4, atol=1e-4)
        found = llm.generate([TOKENS, TOKENS[:4], TOKENS], greedy)
        assert [list(found[i].token_ids) for i in (0, 2)] == [tokens[len(TOKENS) :]] * 2


def as_kernels_round(run: Run, node: Node) -> Array:
    return rounded(run.get(node.inputs[0]), str(node.attrs["act"]))


def rounded(x: Array, act: str) -> Array:
    return Quantize.reference(x.reshape(-1, x.shape[-1]), parse_act(act)).reshape(x.shape)


@pytest.mark.slow
@pytest.mark.parametrize(
    "quant, activations",
    [
        pytest.param("int8", "auto", marks=pytest.mark.sweep), pytest.param("int4-g32", "auto", marks=pytest.mark.sweep),
        ("int4a-g32", "auto"), ("int4-g32", "f32"),
    ],
)  # fmt: skip
def test_quantized_experts_are_those_of_the_stored_weights(
    quant: str, activations: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interpreter on the weights as they mean, its rows rounded as the kernels round them, if they do."""

    def grouped(run: Run, node: Node) -> Array:
        param = run.params[node.inputs[1]]
        act = act_for(parse_format(param.format), param.shape[2], False, activations == "f32").name
        name = node.inputs[0]
        whole = run.env[name]
        run.env[name] = rounded(whole, act)
        out = numpy_index.grouped_linear(run, node)
        run.env[name] = whole
        return out

    monkeypatch.setitem(KERNELS, "quantize", as_kernels_round)  # type: ignore[arg-type]
    monkeypatch.setitem(KERNELS, "grouped_linear", grouped)  # type: ignore[arg-type]
    tiny_model("mixtral").save_pretrained(tmp_path)  # type: ignore[operator]
    path = compile_folder(tmp_path, quant, target=PLAINEST, kv_dtype="f32", activations=activations)
    with open_pack(path, trust=True) as pack:
        graph = parse_graph(bytes(pack.member("step/graph.txt")).decode())
        weights: Any = InMemory(pack.manifest.tensors, bytes(pack.weights))
        wanted = reference_logits(graph, TOKENS, weights)
    with LLM(path) as llm:
        error = np.abs(llm.logits(TOKENS) - wanted) / np.abs(wanted).max()
    assert np.median(error) <= 1e-4 and error.max() <= 1e-3, (np.median(error), error.max())
