"""What every device promises, tried on each: the same tests for null, CPU, CUDA and Metal."""

from __future__ import annotations

import numpy as np
import pytest

from ferrum.devices.base import Executor, OverlappingExecutor, StepBuffers
from ferrum.devices.options import DeviceOptions
from ferrum.engine.engine import Engine
from ferrum.engine.params import SamplingParams
from ferrum.errors import FerrumError
from ferrum.pack.programs import kv_groups
from ferrum.pack.sampling import allow_bits, sample_reference
from ferrum.pack.step import INPUTS, OUTPUTS
from tests.devices.conftest import SMALL, Loader

ARRAYS = [array.name for array in (*INPUTS, *OUTPUTS)]


def fill(executor: Executor, rows: list[tuple[list[int], int, list[int]]]) -> StepBuffers:
    """A greedy step of sequences (tokens, position of the first, blocks); the last token of each is sampled."""
    b, at = executor.buffers, 0
    b.query_start[0] = b.penalty_start[0] = b.bias_start[0] = 0
    for s, (tokens, start, blocks) in enumerate(rows):
        n = len(tokens)
        b.tokens[at : at + n] = tokens
        b.positions[at : at + n] = range(start, start + n)
        at += n
        b.query_start[s + 1], b.context_len[s], b.sample_rows[s] = at, start + n, at - 1
        b.block_table[s, :, : len(blocks)] = blocks  # all layers keep all
        for name in ("temperature", "top_k", "min_p", "presence_penalty", "frequency_penalty", "use_mask", "seed", "draw"):
            getattr(b, name)[s] = 0
        b.top_p[s] = b.repetition_penalty[s] = 1
        b.num_logprobs[s] = -1
        b.penalty_start[s + 1] = b.bias_start[s + 1] = 0
    b.num_tokens, b.num_seqs, b.num_samples = at, len(rows), len(rows)
    return b


def prompt(executor: Executor, length: int, seed: int = 1) -> list[int]:
    return np.random.default_rng(seed).integers(0, executor.limits.vocab_size, length).tolist()


def last_logits(executor: Executor, tokens: list[int], start: int, blocks: list[int]) -> np.ndarray:
    fill(executor, [(tokens, start, blocks)])
    executor.step()
    return executor.logits()[0].copy()


def close_to(found: np.ndarray, wanted: np.ndarray) -> bool:
    return bool(np.abs(found - wanted).max() <= 0.02 * np.abs(wanted).max())


def test_limits_and_buffers_are_what_was_asked_for(loader: Loader) -> None:
    executor = loader()
    limits = executor.limits
    assert (limits.max_seqs, limits.max_samples, limits.max_tokens) == (4, 8, 12)
    assert limits.vocab_size == loader.pack.manifest.model.vocab_size
    assert limits.block_size == kv_groups(loader.pack.manifest)[0].unit and limits.num_blocks >= 4
    plain = StepBuffers(limits)
    for name in ARRAYS:
        array, wanted = getattr(executor.buffers, name), getattr(plain, name)
        assert array.shape == wanted.shape and array.dtype == wanted.dtype and array.flags.c_contiguous, name
        assert not array.any(), name


def test_a_greedy_token_is_the_largest_logit(loader: Loader) -> None:
    executor = loader()
    b = fill(executor, [(prompt(executor, 5), 0, [2, 1]), (prompt(executor, 3, 2), 0, [0, 3])])
    b.num_logprobs[:2] = 3
    executor.step()
    logits = executor.logits()
    assert logits.shape == (2, executor.limits.vocab_size) and logits.dtype == np.float32
    found = {name: getattr(b, name).copy() for name in ("out_token", "out_logprob", "top_token", "top_logprob")}
    sample_reference(logits.copy(), b)
    assert found["out_token"][:2].tolist() == b.out_token[:2].tolist() == logits.argmax(1).tolist()
    np.testing.assert_array_equal(found["top_token"][:2, :3], b.top_token[:2, :3])
    np.testing.assert_allclose(found["out_logprob"][:2], b.out_logprob[:2], atol=1e-4)
    np.testing.assert_allclose(found["top_logprob"][:2, :3], b.top_logprob[:2, :3], atol=1e-4)


def test_chunks_and_blocks_in_any_order_give_the_same(loader: Loader) -> None:
    executor = loader()
    tokens = prompt(executor, 11)
    whole = last_logits(executor, tokens, 0, [0, 1, 2])
    blocks = [3, 0, 2]
    for start, end in ((0, 1), (1, 7), (7, 10), (10, 11)):
        parts = last_logits(executor, tokens[start:end], start, blocks)
    assert close_to(parts, whole)


def test_a_batch_is_what_each_is_alone(loader: Loader) -> None:
    executor = loader()
    size = executor.limits.block_size
    lengths = [1, 2, 5, 4]
    alone = []
    for i, length in enumerate(lengths):
        alone.append(last_logits(executor, prompt(executor, length, i), 0, [0, 1]))
    blocks = [[2 * i + j for j in range(-(-length // size) + 1)] for i, length in enumerate(lengths)]
    fill(executor, [(prompt(executor, length, i), 0, blocks[i]) for i, length in enumerate(lengths)])
    executor.step()
    for i, row in enumerate(executor.logits()):
        assert close_to(row, alone[i]), i


def test_a_step_may_sample_nothing(loader: Loader) -> None:
    executor = loader()
    tokens = prompt(executor, 9)
    whole = last_logits(executor, tokens, 0, [0, 1, 2])
    fill(executor, [(tokens[:6], 0, [1, 2, 3])]).num_samples = 0
    executor.step()
    assert executor.logits().shape == (0, executor.limits.vocab_size)
    assert close_to(last_logits(executor, tokens[6:], 6, [1, 2, 3]), whole)


def test_a_copied_block_serves_as_the_first(loader: Loader) -> None:
    executor = loader()
    size = executor.limits.block_size
    tokens = prompt(executor, min(size, 10)) if size > 4 else prompt(executor, 4)
    last_logits(executor, tokens, 0, [0])
    executor.copy_block(0, 3)
    last_logits(executor, prompt(executor, len(tokens), 9), 0, [0])  # the first is overwritten
    again = last_logits(executor, [1], len(tokens), [3, 1])
    last_logits(executor, tokens, 0, [2])
    assert close_to(again, last_logits(executor, [1], len(tokens), [2, 0]))


def test_sampling_with_everything_on(loader: Loader) -> None:
    executor = loader()
    random = np.random.default_rng(6)
    vocab, different = executor.limits.vocab_size, 0
    for _ in range(20):
        b = fill(executor, [(prompt(executor, 2, int(random.integers(99))), 0, [i]) for i in range(4)])
        b.temperature[:4] = random.choice([0, 0.5, 1, 3], 4)
        b.top_k[:4] = random.choice([0, 1, 5], 4)
        b.top_p[:4] = random.choice([1, 0.9, 0.3], 4)
        b.min_p[:4] = random.choice([0, 0.1], 4)
        b.repetition_penalty[:4] = random.choice([1, 1.3], 4)
        b.presence_penalty[:4] = random.choice([0, 0.5], 4)
        b.frequency_penalty[:4] = random.choice([0, -0.5], 4)
        b.seed[:4] = random.integers(0, 2**64, 4, dtype=np.uint64)
        b.draw[:4] = random.integers(0, 1000, 4)
        for row in range(4):
            for start, token, value, numbers in (
                (b.penalty_start, b.penalty_token, b.penalty_count, [0, 1, 3]),
                (b.bias_start, b.bias_token, b.bias_value, [-5, 2]),
            ):
                begin, count = int(start[row]), int(random.integers(0, 4))
                start[row + 1] = begin + count
                token[begin : begin + count] = random.permutation(vocab)[:count]
                value[begin : begin + count] = random.choice(numbers, count)
            b.use_mask[row] = random.integers(0, 2)
            allow_bits(random.permutation(vocab)[: random.integers(1, vocab)].tolist(), b.mask[row])
        executor.step()
        found = b.out_token[:4].copy()
        sample_reference(executor.logits().copy(), b)
        different += int((found != b.out_token[:4]).sum())
    assert different <= 1, "more than rounding at the borders of the cumulative sum"


def test_close_twice_and_load_again(loader: Loader) -> None:
    first = loader()
    one = last_logits(first, prompt(first, 3), 0, [0])
    first.close()
    first.close()
    second = loader()
    np.testing.assert_array_equal(last_logits(second, prompt(second, 3), 0, [0]), one)


def test_memory_for_less_than_a_sequence_is_refused(loader: Loader) -> None:
    if loader.name == "null":  # it has no memory to be too small
        loader(DeviceOptions(max_seqs=4, max_tokens=12, kv_cache_bytes=1)).close()
        return
    with pytest.raises(FerrumError) as error:
        loader(DeviceOptions(max_seqs=4, max_tokens=12, kv_cache_bytes=1))
    assert error.value.code == "kv-memory-too-small"


def generate(executor: Executor, prompts: list[list[int]], params: SamplingParams) -> list[list[int]]:
    engine = Engine(executor)
    found: dict[str, list[int]] = {}
    for i, tokens in enumerate(prompts):
        engine.add(str(i), tokens, params)
    while engine.has_work:
        for event in engine.step():
            found.setdefault(event.request_id, []).append(event.token)
    assert engine.stats().blocks_used == 0
    return [found[str(i)] for i in range(len(prompts))]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_the_engine_gives_the_same_in_every_batching(loader: Loader, temperature: float) -> None:
    params = SamplingParams(temperature=temperature, seed=3, max_tokens=9, ignore_eos=True)
    wide, narrow = loader(), loader(DeviceOptions(max_seqs=2, max_tokens=3))
    prompts = [prompt(wide, length, length) for length in (1, 2, 3, 7, 11, 5, 20)]
    assert generate(wide, prompts, params) == generate(narrow, prompts, params)


def test_steps_ahead_take_their_tokens_from_the_device(loader: Loader) -> None:
    executor = loader()
    if not isinstance(executor, OverlappingExecutor):
        assert not hasattr(executor, "begin") and not hasattr(executor, "finish")
        return
    tokens = prompt(executor, 3)
    expected = list(tokens)
    for _ in range(5):
        expected.append(int(last_logits(executor, expected, 0, [0, 1]).argmax()))
    fill(executor, [(tokens, 0, [2, 3])])
    executor.begin()
    found = []
    for step in range(4):
        fill(executor, [([0], len(tokens) + step, [2, 3])])  # the token is not known yet
        executor.begin(ahead=True)
        found.append(int(executor.finish().out_token[0]))
    found.append(int(executor.finish().out_token[0]))
    assert found == expected[len(tokens) :]
    assert SMALL.max_tokens >= len(tokens)
