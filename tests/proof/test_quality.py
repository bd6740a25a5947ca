"""How far one set of logits is from another, and the step that computes them for several texts."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ferrum.devices.base import Limits, StateGroup, StepBuffers
from ferrum.errors import FerrumError
from ferrum.proof.quality import Texts, compare, text_logits

VOCAB = 11


def definition(p_row: NDArray[np.float32], q_row: NDArray[np.float32]) -> tuple[float, list[float], list[float]]:
    """KL(p || q) and both distributions, with Python's exact sums."""
    dists = []
    for row in (p_row, q_row):
        powers = [math.exp(float(x) - float(row.max())) for x in row]
        dists.append([power / math.fsum(powers) for power in powers])
    p, q = dists
    return math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a), p, q


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), lengths=st.lists(st.integers(2, 9), min_size=1, max_size=4), noise=st.floats(0, 3))
def test_a_card_is_its_definition(seed: int, lengths: list[int], noise: float) -> None:
    random = np.random.default_rng(seed)
    texts = Texts([random.integers(0, VOCAB, n).tolist() for n in lengths])
    right = (3 * random.standard_normal((texts.starts[-1], VOCAB))).astype(np.float32)
    found = (right + noise * random.standard_normal(right.shape) + 5).astype(np.float32)
    card = compare(right, found, texts)
    rows = [definition(*pair) for pair in zip(right, found, strict=True)]
    nexts = [token for ids in texts.ids for token in ids[1:]]
    assert card.positions == len(nexts) == len(rows)
    assert card.kl_mean == pytest.approx(np.mean([row[0] for row in rows]), rel=2e-3, abs=2e-6)
    assert card.kl_p99 == pytest.approx(np.quantile([row[0] for row in rows], 0.99), rel=2e-3, abs=2e-6)
    for said, side in ((card.perplexity_unquantized, 1), (card.perplexity, 2)):
        losses = [-math.log(row[side][token]) for row, token in zip(rows, nexts, strict=True)]
        assert said == pytest.approx(math.exp(np.mean(losses)), rel=2e-3)
    assert card.top1 == pytest.approx(np.mean(right.argmax(-1) == found.argmax(-1)), abs=1e-3)


def test_the_same_logits_lose_nothing() -> None:
    texts, logits = Texts([[1, 2, 3]]), np.arange(2 * VOCAB, dtype=np.float32).reshape(2, VOCAB)
    card = compare(logits, logits.copy(), texts)
    assert (card.kl_mean, card.kl_p99, card.top1) == (0, 0, 1) and not card.bad
    assert card.perplexity == card.perplexity_unquantized


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_logit_that_is_no_number_is_no_small_divergence(bad: float) -> None:
    texts, logits = Texts([[1, 2, 3]]), np.ones((2, VOCAB), np.float32)
    found = logits.copy()
    found[1, 4] = bad
    with pytest.raises(FerrumError, match="not a finite number"), np.errstate(all="ignore"):
        compare(logits, found, texts)


class Recorder:
    """An executor that keeps what it was asked."""

    def __init__(self, slots: int, blocks: int = 8) -> None:
        groups = (StateGroup("window", blocks, window=8), StateGroup("slot", slots, checkpoint=64))
        self.limits = Limits(
            max_tokens=32, max_seqs=4, max_samples=32, num_blocks=blocks, block_size=4, max_blocks_per_seq=8,
            vocab_size=VOCAB, groups=groups, max_adjust=64,
        )  # fmt: skip
        self.buffers = StepBuffers(self.limits)

    def step(self) -> None:
        b = self.buffers
        assert list(b.query_start[:4]) == [0, 5, 6, 14] and list(b.context_len[:3]) == [5, 1, 8]
        assert b.positions[:14].tolist() == [*range(5), 0, *range(8)] and (b.num_tokens, b.num_seqs, b.num_samples) == (14, 3, 14)
        assert b.sample_rows[:14].tolist() == list(range(14)) and not b.temperature[:14].any() and (b.top_p[:14] == 1).all()
        needed = (2, 1, 2)
        for group in (0, 1):
            taken = [block for s, n in enumerate(needed) for block in b.block_table[s, group, :n].tolist()]
            assert len(set(taken)) == len(taken) and max(taken) < self.limits.num_blocks
        assert b.block_table[:3, 2, 0].tolist() == [0, 1, 2]

    def logits(self) -> NDArray[np.float32]:
        return np.zeros((self.buffers.num_samples, VOCAB), np.float32)


def test_texts_are_sequences_of_one_step_that_share_nothing() -> None:
    texts = Texts([[1, 2, 3, 4, 5, 6], [7, 8], [9, 10, 1, 2, 3, 4, 5, 6, 7]])
    assert text_logits(Recorder(slots=6), texts).shape == (14, VOCAB)  # type: ignore[arg-type]
    for small in (Recorder(slots=2), Recorder(slots=6, blocks=5)):
        with pytest.raises(FerrumError, match="places"):
            text_logits(small, texts)  # type: ignore[arg-type]
