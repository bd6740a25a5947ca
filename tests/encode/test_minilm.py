"""Real weights: all-MiniLM-L6-v2 gives what `transformers`' own forward and a mean of its rows give, and means what it should."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray

from ferrum import LLM
from ferrum.codegen.driver import compile_model
from ferrum.codegen.options import CompileOptions
from tests.encode.minilm import MODULE, minilm
from tests.once import once

TEXTS = [
    "A cat sleeps on the warm windowsill.", "The kitten naps in the sun by the window.", "Interest rates rose by half a percent.",
    "Zürich hat 1 See, 2 Flüsse und viele Brücken 🌉.", "x", "word " * 240,
]  # fmt: skip

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(run_folder: Path) -> Path:
    found = importlib.util.find_spec(MODULE)
    return minilm(run_folder) if found else once(run_folder / "minilm", minilm) / MODULE / "model"


def reference(folder: Path, texts: list[str]) -> NDArray[np.float32]:
    """As the model's card says: the mean of the rows of each text's tokens, at length 1."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    rows = []
    with torch.no_grad():
        for text in texts:
            row = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
            rows.append((row / row.norm()).numpy())
    return np.array(rows)


def test_rows_are_those_of_transformers(folder: Path, tmp_path: Path) -> None:
    wanted = reference(folder, TEXTS)
    pack = compile_model(CompileOptions(str(folder), quant="f32", output=tmp_path / "f32.fpk", name="minilm"))
    with LLM(pack) as llm:
        assert llm.info.max_model_len == 256 and llm.info.embedding_width == 384
        found = llm.embed(TEXTS)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)
        np.testing.assert_array_equal(found, np.concatenate([llm.embed(text) for text in TEXTS]))
    assert found[0] @ found[1] > found[0] @ found[2] + 0.3


@pytest.mark.parametrize("quant", ["none", "int8"])
def test_rounded_weights_mean_the_same(quant: str, folder: Path, tmp_path: Path) -> None:
    pack = compile_model(CompileOptions(str(folder), quant=quant, output=tmp_path / "x.fpk", name="minilm"))
    with LLM(pack) as llm:
        assert (np.sum(llm.embed(TEXTS) * reference(folder, TEXTS), axis=1) > 0.98).all()
