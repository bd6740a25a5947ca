"""What small numbers cost the built-in model: divergence from bfloat16 for each token, and known answers."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ferrum import LLM
from ferrum.codegen.prove import runs_here
from ferrum.codegen.target import TARGETS
from ferrum.graphs.tiny.chat import MODEL_FOLDER, Chat
from ferrum.graphs.tiny.evaluate import pack_answers
from ferrum.graphs.tiny.questions import accuracy, questions
from tests.codegen.folders import kept_pack

# Nats for each token; int8 is weights and activations together.
LIMITS = {("int8", ""): 0.01, ("none", "int8"): 0.01, ("int4-g32", ""): 0.05}


@cache
def texts() -> list[list[int]]:
    """Every eighth question with its answer, as tokens."""
    chat = Chat(Tokenizer.from_file(str(MODEL_FOLDER / "tokenizer.json")))
    rendered = [chat.render(p.messages, p.tools, add_generation_prompt=True) + p.answer for p in questions()[::8]]
    return [chat.encode(text) for text in rendered]


def log_probabilities(pack: Path) -> NDArray[np.float64]:
    with LLM(pack, prefix_cache=False) as llm:
        logits = np.concatenate([llm.logits(tokens) for tokens in texts()]).astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.fixture(scope="module")
def expected(tiny_folder: Path) -> NDArray[np.float64]:
    return log_probabilities(kept_pack(tiny_folder, "none"))


@pytest.mark.parametrize(
    ("quant", "kv_dtype"), [pytest.param(*case, marks=pytest.mark.slow if case[1] else ()) for case in LIMITS]
)
def test_divergence_from_bfloat16(tiny_folder: Path, expected: NDArray[np.float64], quant: str, kv_dtype: str) -> None:
    got = log_probabilities(kept_pack(tiny_folder, quant, kv_dtype=kv_dtype))
    divergence = float((np.exp(expected) * (expected - got)).sum(-1).mean())
    print(f"{quant} {kv_dtype}: {divergence:.5f} nats for each of {len(expected)} tokens")
    assert 0 <= divergence <= LIMITS[quant, kv_dtype]


@pytest.mark.slow
@pytest.mark.parametrize("quant", ["none", "int8", "int4-g32", "int4a-g32"])
def test_kernels_of_all_targets_answer_alike(tiny_folder: Path, quant: str) -> None:
    """Every set of instructions that this machine has gives the answers of the plainest one."""
    here = [t.name for t in TARGETS if runs_here(t.arch, t.requires)]
    problems = questions()[::20]
    answers = {name: pack_answers(kept_pack(tiny_folder, quant, target=name), problems) for name in here}
    for name in here:
        assert answers[name] == answers[here[-1]], name


@pytest.mark.slow
def test_answers_that_int8_loses(tiny_folder: Path) -> None:
    """At most one per cent of the known answers."""
    problems = questions()[::2]
    right = {}
    for quant, kv_dtype in (("none", ""), ("int8", ""), ("int8", "int8")):
        table, _ = accuracy(problems, pack_answers(kept_pack(tiny_folder, quant, kv_dtype=kv_dtype), problems))
        right[quant, kv_dtype] = table["total"][0] / table["total"][1]
    assert right["none", ""] >= 0.98
    assert min(right.values()) >= right["none", ""] - 0.01, right
