"""Parameters are checked by name; the reference sampler draws what it says it draws."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ferrum.devices.base import StepBuffers
from ferrum.engine.params import SamplingParams
from ferrum.errors import FerrumError
from ferrum.pack.sampling import adjust_row, allow_bits, choose, log_softmax, philox, sample_reference, uniform
from tests.engine.oracle import limits

BAD: list[tuple[str, Any]] = [
    ("max_tokens", 0), ("max_tokens", 2.0), ("max_tokens", True), ("max_tokens", 1 << 31), ("min_tokens", -1),
    ("temperature", -0.1), ("temperature", math.nan), ("temperature", math.inf), ("temperature", "1"), ("temperature", None),
    ("top_k", -2), ("top_k", 1.5), ("top_p", 1.1), ("top_p", -0.1), ("min_p", 2), ("repetition_penalty", 0),
    ("presence_penalty", 2.5), ("frequency_penalty", -3), ("seed", 1 << 64), ("seed", 1.0), ("logprobs", 21), ("logprobs", -1),
    ("n", 0), ("n", 65), ("stop", ("",)), ("stop", ["x"] * 17), ("stop", [1]), ("stop", "x" * 1025), ("stop_token_ids", [-1]),
    ("stop_token_ids", "12"), ("stop_token_ids", [1.0]), ("logit_bias", {1: 101}), ("logit_bias", {-1: 1}), ("logit_bias", []),
    ("logit_bias", {1: math.nan}), ("logit_bias", {"1": 1}), ("ignore_eos", 1), ("grammar", None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_value_out_of_range_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(FerrumError) as caught:
        SamplingParams(**{name: value})
    assert caught.value.where == name and name in caught.value.what


def test_min_tokens_cannot_exceed_max_tokens() -> None:
    with pytest.raises(FerrumError, match="min_tokens"):
        SamplingParams(min_tokens=5, max_tokens=4)


def test_parameters_survive_the_wire() -> None:
    params = SamplingParams(stop="end", stop_token_ids=[5, 2], logit_bias={3: 1}, seed=-1, temperature=1, logprobs=0, n=3)
    assert params.stop == ("end",) and params.stop_token_ids == (2, 5)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(params), type=SamplingParams) == params


def test_choices_have_different_seeds() -> None:
    seeds = {SamplingParams(seed=-1, n=3).seed_of(i, 0) for i in range(3)}
    assert len(seeds) == 3 and all(0 <= s < 1 << 64 for s in seeds) and (1 << 64) - 1 in seeds
    assert SamplingParams().seed_of(0, 42) == 42


def test_philox_gives_the_published_values() -> None:
    """Known answers of Random123 (kat_vectors, philox4x32 10)."""
    full = 0xFFFFFFFF
    assert philox((0, 0), (0, 0, 0, 0)) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    assert philox((full, full), (full,) * 4) == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)
    pi = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    assert philox((0xA4093822, 0x299F31D0), pi) == (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)


def test_uniform_takes_the_top_24_bits_of_the_first_word() -> None:
    assert uniform(0, 0) == (0x6627E8D5 >> 8) / 2**24
    assert uniform(1, 0) != uniform(0, 1) != uniform(1 << 32, 0)


def chi_square(counts: np.ndarray, probabilities: np.ndarray) -> float:
    wanted = probabilities * counts.sum()
    return float(((counts - wanted) ** 2 / wanted).sum())


@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p", "kept"),
    [
        (0, 1.0, 0.0, 8),
        (3, 1.0, 0.0, 3),
        (0, 0.6, 0.0, 3),
        (0, 1.0, 0.5, 2),
        (5, 0.85, 0.2, 4),
        (0, 0.0, 0.0, 1),
        (1, 1.0, 0.0, 1),
    ],
)
def test_draws_follow_the_distribution(top_k: int, top_p: float, min_p: float, kept: int) -> None:
    probabilities = np.array([0.05, 0.30, 0.10, 0.20, 0.05, 0.15, 0.05, 0.10])
    x = np.log(probabilities).astype(np.float32)
    draws = 6000
    counts = np.bincount([choose(x, top_k, top_p, min_p, uniform(1234, d)) for d in range(draws)], minlength=8)
    order = np.argsort(-x, kind="stable")[:kept]
    assert set(np.flatnonzero(counts)) == set(order)
    share = probabilities[order] / probabilities[order].sum()
    # 99.9 % quantiles of chi-square for 0 to 7 degrees of freedom
    quantiles = [1e-9, 10.8, 13.8, 16.3, 18.5, 20.5, 22.5, 24.3]
    assert chi_square(counts[order], share) <= quantiles[kept - 1]


logit_rows = st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=40).map(lambda v: np.array(v, np.float32))
unit = st.integers(0, 2**24 - 1).map(lambda i: i / 2**24)


@settings(max_examples=300, deadline=None)
@given(logit_rows, st.integers(0, 45), st.floats(0, 1), st.floats(0, 1), unit)
def test_a_choice_is_within_every_cut(x: np.ndarray, top_k: int, top_p: float, min_p: float, u: float) -> None:
    token = choose(x, top_k, top_p, min_p, u)
    p = np.exp(x.astype(np.float64) - x.max())
    rank = int(np.count_nonzero(x > x[token]) + np.count_nonzero(x[:token] == x[token]))
    assert top_k == 0 or rank < top_k
    assert p[token] >= min_p * (1 - 1e-12)
    kept = np.sort(p)[::-1][: top_k or None]
    if rank > 0 and top_p < 1:
        assert kept[:rank].sum() < top_p * kept.sum() * (1 + 1e-12)


@given(logit_rows)
def test_draws_at_the_ends_are_the_first_and_the_last_token(x: np.ndarray) -> None:
    order = np.argsort(-x, kind="stable")
    assert choose(x, x.size, 1.0, 0.0, 0.0) == order[0]
    assert x[choose(x, 0, 1.0, 0.0, 1 - 2**-24)] > x.max() - 40


def test_a_token_without_probability_is_never_drawn() -> None:
    x = np.array([-np.inf, 0.0, -np.inf], np.float32)
    for u in (0.0, 0.5, 1 - 2**-24):
        assert choose(x, 0, 1.0, 0.0, u) == choose(x, 3, 1.0, 0.0, u) == 1


def one_row(x: np.ndarray, **values: float) -> StepBuffers:
    buffers = StepBuffers(limits(vocab_size=x.size))
    buffers.num_samples = 1
    settings_ = {"temperature": 0, "top_p": 1, "repetition_penalty": 1, "num_logprobs": -1}
    for name, value in {**settings_, **values}.items():
        getattr(buffers, name)[0] = value
    return buffers


def test_penalties_follow_their_definitions() -> None:
    x = np.array([2.0, -1.0, 1.9, 0.5], np.float32)
    buffers = one_row(x, repetition_penalty=2, presence_penalty=0.25, frequency_penalty=0.5)
    buffers.penalty_token[:3], buffers.penalty_count[:3], buffers.penalty_start[1] = [0, 1, 2], [0, 2, 1], 3
    assert adjust_row(x, buffers, 0).tolist() == [1.0, -2.0 - 1.25, np.float32(np.float32(0.95) - np.float32(0.75)), 0.5]
    sample_reference(x[None], buffers)
    assert buffers.out_token[0] == 0


def test_bias_is_added_before_penalties_and_equal_logits_go_to_the_lowest_id() -> None:
    x = np.array([1.0, 3.0, 3.0, 0.0], np.float32)
    buffers = one_row(x)
    sample_reference(x[None], buffers)
    assert buffers.out_token[0] == 1
    buffers.bias_token[:2], buffers.bias_value[:2], buffers.bias_start[1] = [3, 1], [9.0, -1e30], 2
    sample_reference(x[None], buffers)
    assert buffers.out_token[0] == 3


def test_a_mask_leaves_only_allowed_tokens() -> None:
    x = np.linspace(3, 0, 70, dtype=np.float32)
    buffers = one_row(x, temperature=1, use_mask=1)
    allow_bits([33, 64, 69], buffers.mask[0])
    drawn = set()
    for draw in range(60):
        buffers.draw[0] = draw
        sample_reference(x[None], buffers)
        drawn.add(int(buffers.out_token[0]))
    assert drawn == {33, 64, 69}


def test_logprobs_are_of_the_raw_distribution() -> None:
    x = np.array([1.0, 3.0, 3.0, 0.0], np.float32)
    buffers = one_row(x, num_logprobs=3, repetition_penalty=3)
    buffers.penalty_token[0], buffers.penalty_start[1] = 1, 1
    sample_reference(x[None], buffers)
    assert buffers.out_token[0] == 2 and buffers.top_token[0, :3].tolist() == [1, 2, 0]
    assert buffers.out_logprob[0] == pytest.approx(math.log(math.exp(3) / (math.e + 2 * math.exp(3) + 1)), abs=1e-6)
    np.testing.assert_allclose(buffers.top_logprob[0, :3], log_softmax(x)[[1, 2, 0]], atol=1e-6)
