"""Types without a record as packs for this CPU: generic kernels, and the logits and greedy tokens of `transformers`.

One type of each class of patterns, in one size of chunks; `make coverage` tries every type in three.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import numpy as np
import pytest

from ferrum import LLM
from ferrum.devices.cpu import CpuDevice
from ferrum.pack.programs import build_of
from ferrum.pack.reader import open_pack
from ferrum.proof.quality import Texts, room_for, text_logits
from tests.coverage.outcomes import RUNS
from tests.coverage.trial import tried

CHUNK = 7
QUICK = {
    "gemma2": "windows and soft caps, norms before and after, one plus a weight",
    "bloom": "biases by distance, heads that lie interleaved",
    "mamba": "a short convolution, a recurrence in a slot, no attention",
}
LONG = {
    "dots1": "experts by sigmoid and a correction that the checkpoint holds, dense layers before",
    "qwen3_next": "the delta rule between layers of attention",
    "llama4_text": "attention within chunks, complex rope, experts that all compute",
    "opt": "positions from the third row, relu",
    "phi": "parallel residual, rope of some columns",
    "cohere": "interleaved rope, LayerNorm without a bias",
    "olmo2": "norms of queries and keys over the whole width",
    "gpt_neox": "query, key and value of each head side by side",
    "gemma3_text": "two ropes, windows by layer",
    "gpt_oss": "sinks, experts with biases",
    "bert": "an encoder's layers as a decoder",
}


@pytest.mark.parametrize("kind", [*QUICK, *(pytest.param(kind, marks=pytest.mark.slow) for kind in LONG)])
def test_a_traced_type_is_a_pack_that_says_what_transformers_says(kind: str, tmp_path: Path) -> None:
    outcome = tried(kind, tmp_path, (CHUNK,))
    assert outcome.result == RUNS, outcome
    if kind == "gemma2":
        with open_pack(tmp_path / "model.fpk", trust=True) as pack:
            kernels = build_of(pack.manifest).kernels
        assert {kernel.spec for kernel in kernels if kernel.why.startswith("generic: ")} >= {"map", "paged_attention"}
    if kind in QUICK:
        check_texts_in_one_step(tmp_path / "model.fpk")


def check_texts_in_one_step(path: Path) -> None:
    """What a quality card is measured by: texts side by side say what each says alone, whatever a model keeps of them."""
    with LLM(str(path), trust=True, max_num_seqs=1) as llm:
        random, vocab = np.random.default_rng(11), llm.info.vocab_size
        texts = Texts([random.integers(3, vocab, n).tolist() for n in (25, 2, 18, 33)])
        alone = np.concatenate([llm.logits(tokens) for tokens in texts.read])
    with open_pack(path, trust=True) as pack:
        executor = CpuDevice().load(pack, room_for(pack.manifest, texts))
        try:
            np.testing.assert_allclose(text_logits(executor, texts), alone, rtol=1e-4, atol=1e-4 * np.abs(alone).max())
        finally:
            executor.close()
