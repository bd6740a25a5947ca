"""Models of `transformers`, traced and paged, on the interpreter behind an engine: the same greedy tokens in any batches."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from functools import cache

import numpy as np
import pytest
import torch

from ferrum.codegen.interpreter import InterpreterExecutor, Programs
from ferrum.devices.base import Limits
from ferrum.engine.engine import Engine
from ferrum.engine.options import EngineOptions
from ferrum.graphs.frontend.traced import trace_module
from ferrum.graphs.interpret import ArrayWeights
from ferrum.graphs.pipeline import run_pipeline
from tests.engine.oracle import check_empty, drain, tokens_of
from tests.engine.state_models import greedy
from tests.graphs.tiny_models import SMALL, tiny_model

LENGTHS = (1, 7, 19, 12)
STEPS = 8
CHUNKS = ((1, 128), (7, 128), (64, 14))
QUICK = ("gemma2",)  # in all of them; the others in one each, and in all by ``make coverage``
LONG = ("olmo2", "starcoder2", "phi3", "gpt_neox", "mixtral", "gpt2", "opt", "cohere", "gpt_oss", "qwen3_moe", "stablelm")
ALL = [
    *((kind, *chunk) for kind in QUICK for chunk in CHUNKS),
    *(pytest.param(kind, *CHUNKS[i % len(CHUNKS)], marks=pytest.mark.slow) for i, kind in enumerate(LONG)),
]


def prompts() -> list[list[int]]:
    random = np.random.default_rng(5)
    return [random.integers(3, 60, length).tolist() for length in LENGTHS]


@cache
def told(kind: str) -> tuple[Programs, list[list[int]]]:
    """The paged program, and what `transformers` says after each prompt."""
    model = tiny_model(kind)
    said = []
    with torch.no_grad():
        for prompt in prompts():
            tokens = list(prompt)
            for _ in range(STEPS):
                tokens.append(int(model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
            said.append(tokens[len(prompt) :])
    weights = {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}
    graph = run_pipeline(trace_module(model, kind), stop_after="fuse_residual")
    return Programs(graph, ArrayWeights(weights)), said


def engine_of(kind: str, options: EngineOptions, num_blocks: int = 128) -> Engine:
    limits = Limits(
        max_tokens=64, max_seqs=8, max_samples=8, num_blocks=num_blocks, block_size=4, max_blocks_per_seq=num_blocks,
        vocab_size=SMALL["vocab_size"], max_adjust=1024,
    )  # fmt: skip
    return Engine(InterpreterExecutor(told(kind)[0], limits, window_blocks=128), options)


@pytest.mark.parametrize(("kind", "chunk", "num_blocks"), ALL)
def test_chunks_batches_and_preemption_give_the_tokens_of_transformers(kind: str, chunk: int, num_blocks: int) -> None:
    engine = engine_of(kind, EngineOptions(max_prefill_chunk=chunk), num_blocks)
    for number, prompt in enumerate(prompts()):
        engine.add(str(number), prompt, greedy(STEPS))
    found = drain(engine)
    assert [tokens_of(found[str(number), 0]) for number in range(len(LENGTHS))] == told(kind)[1]
    assert num_blocks == 128 or engine.stats().num_preemptions
    check_empty(engine)
