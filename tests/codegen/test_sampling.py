"""The generated sampler against the reference in numpy, on a model's own logits."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import pytest

from ferrum.devices.base import Executor, StepBuffers
from ferrum.devices.cpu import CpuDevice
from ferrum.devices.options import DeviceOptions
from ferrum.pack.reader import open_pack
from ferrum.pack.sampling import sample_reference
from tests.codegen.conftest import VOCAB, RandomPack

ROWS = 32


@pytest.fixture(scope="module")
def executor(random_pack: RandomPack) -> Iterator[Executor]:
    with open_pack(random_pack("f32"), trust=True) as pack:
        made = CpuDevice().load(pack, DeviceOptions(max_seqs=2, max_tokens=ROWS, max_samples=ROWS, max_model_len=64))
        yield made
        made.close()


def plain_step(executor: Executor, random: np.random.Generator) -> StepBuffers:
    """A prompt of ``ROWS`` tokens with every row sampled greedily; the caller changes what it tests."""
    b = executor.buffers
    b.num_tokens = b.num_samples = ROWS
    b.num_seqs = 1
    b.tokens[:] = random.integers(0, VOCAB, ROWS)
    b.positions[:] = b.sample_rows[:] = np.arange(ROWS)
    b.query_start[:2] = [0, ROWS]
    b.context_len[0] = ROWS
    b.block_table[0, 0] = np.arange(b.block_table.shape[2])
    b.temperature[:] = b.min_p[:] = b.presence_penalty[:] = b.frequency_penalty[:] = 0
    b.top_p[:] = b.repetition_penalty[:] = 1
    b.top_k[:] = b.use_mask[:] = b.penalty_start[:] = b.bias_start[:] = 0
    b.num_logprobs[:] = -1
    b.seed[:] = random.integers(0, 1 << 63, ROWS)
    b.draw[:] = np.arange(ROWS)
    return b


def compare(executor: Executor) -> float:
    """Run the step; the share of rows whose token is the reference's."""
    executor.step()
    expected = copy.deepcopy(executor.buffers)
    sample_reference(executor.logits(), expected)
    return float((expected.out_token[:ROWS] == executor.buffers.out_token[:ROWS]).mean())


def test_greedy_is_the_largest_logit(executor: Executor) -> None:
    plain_step(executor, np.random.default_rng(0))
    assert compare(executor) == 1


CUTS = [
    (0, 1.0, 0.0),
    (5, 1.0, 0.0),
    (0, 0.9, 0.0),
    (0, 1.0, 0.1),
    (50, 0.8, 0.05),
    (1, 1.0, 0.0),
    (0, 0.0, 0.0),
    (5000, 0.999, 0.0),
]


@pytest.mark.parametrize(("top_k", "top_p", "min_p"), CUTS)
@pytest.mark.parametrize("temperature", [0.3, 1.0, 3.0])
def test_draws_are_the_references(executor: Executor, temperature: float, top_k: int, top_p: float, min_p: float) -> None:
    agreed = []
    for seed in range(12):
        b = plain_step(executor, np.random.default_rng(seed))
        b.temperature[:], b.top_k[:], b.top_p[:], b.min_p[:] = temperature, top_k, top_p, min_p
        agreed.append(compare(executor))
    # the exponential is float32 on the device and float64 in the reference: a draw at a border may differ
    assert np.mean(agreed) >= 0.99


def test_penalties_bias_and_mask(executor: Executor) -> None:
    random = np.random.default_rng(3)
    b = plain_step(executor, random)
    each = 20
    b.penalty_start[:] = b.bias_start[:] = np.arange(ROWS + 1) * each
    for row in range(ROWS):
        own = slice(row * each, (row + 1) * each)
        b.penalty_token[own] = random.permutation(VOCAB)[:each]
        b.bias_token[own] = random.permutation(VOCAB)[:each]
    b.penalty_count[: ROWS * each] = random.integers(0, 4, ROWS * each)
    b.bias_value[: ROWS * each] = random.normal(size=ROWS * each) * 5
    b.repetition_penalty[:], b.presence_penalty[:], b.frequency_penalty[:] = 1.3, 0.7, -0.4
    b.use_mask[: ROWS // 2] = 1
    b.mask[:] = random.integers(0, 1 << 32, b.mask.shape)
    for temperature in (0.0, 0.8):
        b.temperature[:] = temperature
        assert compare(executor) >= (1 if temperature == 0 else 0.96)


def test_the_same_draw_gives_the_same_token(executor: Executor) -> None:
    seen = []
    for _ in range(2):
        plain_step(executor, np.random.default_rng(9)).temperature[:] = 1.0
        executor.step()
        seen.append(executor.buffers.out_token[:ROWS].copy())
    assert np.array_equal(*seen)
    executor.buffers.draw[:] += 1
    executor.step()
    assert (executor.buffers.out_token[:ROWS] != seen[0]).any()


def test_logprobs_are_of_the_raw_distribution(executor: Executor) -> None:
    b = plain_step(executor, np.random.default_rng(5))
    b.temperature[:], b.num_logprobs[:] = 0.7, np.arange(ROWS) % 21
    executor.step()
    expected = copy.deepcopy(b)
    sample_reference(executor.logits(), expected)
    same = expected.out_token[:ROWS] == b.out_token[:ROWS]
    np.testing.assert_allclose(b.out_logprob[:ROWS][same], expected.out_logprob[:ROWS][same], atol=2e-5)
    for row in range(ROWS):
        n = row % 21
        assert np.array_equal(b.top_token[row, :n], expected.top_token[row, :n])
        np.testing.assert_allclose(b.top_logprob[row, :n], expected.top_logprob[row, :n], atol=2e-5)
