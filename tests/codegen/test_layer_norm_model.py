"""A model of another family, with LayerNorm and GELU, on every kind of machine: logits are torch's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from ferrum import LLM
from ferrum.codegen.driver import compile_targets
from ferrum.codegen.options import CompileOptions
from ferrum.graphs.frontend.torch_export import import_module
from ferrum.graphs.pipeline import run_pipeline
from tests.graphs.scratch import Sizes, Spelling, build
from tests.models.test_parity import BASE

SIZES = Sizes(qk_norm=False, tied=False, bias=True, layers=2)
TOKENS = [3, 1, 4, 15, 9, 26, 5, 35, 8, 9, 7]


@pytest.fixture(scope="module", params=[Spelling(norm="layer", mlp="gelu"), Spelling(norm="layer_unbiased", mlp="gelu_tanh")])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, NDArray[np.float32]]]:
    """A folder with weights and the finished graph, and the logits of torch's module."""
    folder = tmp_path_factory.mktemp("layer_norm")
    torch.manual_seed(2)
    module = build(SIZES, request.param, "cpu")
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.normal_(1.0 if name.endswith("norm.weight") else 0.0, 0.3)
        logits = module(torch.tensor([TOKENS]))[0].numpy()
    save_file({name: p.detach().contiguous() for name, p in module.named_parameters()}, folder / "model.safetensors")
    config = BASE | {"architectures": ["LlamaForCausalLM"], "vocab_size": SIZES.vocab, "rope_theta": 10000.0}
    (folder / "config.json").write_text(json.dumps(config))  # names and limits; the graph is what is compiled
    run_pipeline(import_module(build(SIZES, request.param), name="scratch"), dump=folder / "dumps")
    yield folder, logits


@pytest.mark.parametrize(
    ("target", "quant", "limit"),
    (
        ("cpu", "f32", 1e-4),
        pytest.param("cpu", "none", 3e-2, marks=pytest.mark.slow),
        pytest.param("cuda-sm80", "f32", 1e-4, marks=pytest.mark.slow),
        pytest.param("cuda-sm80", "none", 3e-2, marks=pytest.mark.sweep),
        pytest.param("metal-m1", "none", 3e-2, marks=pytest.mark.slow),
    ),
)
def test_logits_are_those_of_torch(
    model: tuple[Path, NDArray[np.float32]], target: str, quant: str, limit: float, tmp_path: Path
) -> None:
    folder, expected = model
    output = tmp_path / "x.fpk"
    options = CompileOptions(str(folder), target, quant, output=output, dump_dir=folder / "dumps", start_from="layout")
    pack = compile_targets(options)[0]  # proves it as well
    with LLM(str(pack), device="auto" if target == "cpu" else "emulate", trust=True, max_num_seqs=2) as llm:
        got = llm.logits(TOKENS)
    assert np.abs(got - expected).max() <= limit * np.abs(expected).max()
