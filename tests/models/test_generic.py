"""Types without a record as packs for this CPU: generic kernels, and the logits and greedy tokens of `transformers`."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import numpy as np
import pytest
import torch

from ferrum import LLM, SamplingParams
from ferrum.codegen.driver import check_model, compile_model
from ferrum.codegen.options import CompileOptions
from ferrum.pack.reader import open_pack
from tests.graphs.tiny_models import SMALL, tiny_model

QUICK = ("gemma2",)
LONG = ("gpt2", "opt", "phi", "olmo2", "starcoder2", "gpt_neox", "stablelm", "cohere", "phi3", "gemma3_text", "glm")
LENGTHS = (1, 7, 19, 64)
STEPS = 8


def prompts() -> list[list[int]]:
    random = np.random.default_rng(5)
    return [random.integers(3, SMALL["vocab_size"], length).tolist() for length in LENGTHS]


class Model:
    """A tiny model of a type in a folder, its pack, and what `transformers` says."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.model = tiny_model(kind)
        self.folder = folder / kind
        self.model.save_pretrained(self.folder)  # type: ignore[operator]
        self.pack = compile_model(CompileOptions(str(self.folder), quant="f32", output=folder / f"{kind}.fpk"))

    def logits(self, tokens: list[int]) -> np.ndarray:
        with torch.no_grad():
            return np.asarray(self.model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].numpy())

    def greedy(self, prompt: list[int]) -> list[int]:
        tokens = list(prompt)
        for _ in range(STEPS):
            tokens.append(int(self.logits(tokens)[-1].argmax()))
        return tokens[len(prompt) :]


@pytest.mark.parametrize("kind", [*QUICK, *(pytest.param(kind, marks=pytest.mark.slow) for kind in LONG)])
def test_a_traced_type_is_a_pack_that_says_what_transformers_says(kind: str, tmp_path: Path) -> None:
    made = Model(kind, tmp_path)  # in which compiling finds what a check would
    if kind in QUICK:
        assert check_model(CompileOptions(str(made.folder))) == ()
        with open_pack(made.pack, trust=True) as pack:
            kernels = pack.manifest.programs[0].kernels
        assert {kernel.spec for kernel in kernels if kernel.why.startswith("generic: ")} >= {"map", "paged_attention"}
    wanted = [made.greedy(prompt) for prompt in prompts()]
    for chunk in (1, 7, 64):
        with LLM(str(made.pack), trust=True, max_num_seqs=4, max_prefill_chunk=chunk) as llm:
            for prompt in prompts() if chunk == 64 else ():
                np.testing.assert_allclose(llm.logits(prompt), made.logits(prompt), rtol=1e-4, atol=1e-4)
            outputs = llm.generate(prompts(), SamplingParams(temperature=0, max_tokens=STEPS, ignore_eos=True))
            assert [output.token_ids for output in outputs] == wanted
