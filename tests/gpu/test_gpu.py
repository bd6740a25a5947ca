"""On a real GPU: the numbers of the CPU, every recording, steps ahead, preemption, and a soak. ``make test-gpu`` runs them."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

import numpy as np
import pytest

from ferrum.devices.base import OverlappingExecutor
from ferrum.devices.cuda import CudaExecutor
from ferrum.devices.options import DeviceOptions
from ferrum.engine.engine import Engine
from ferrum.engine.load import LoadedModel, load_model
from ferrum.engine.options import EngineOptions
from ferrum.engine.params import SamplingParams
from ferrum.pack.programs import kv_groups
from ferrum.pack.sampling import sample_reference
from ferrum.pack.selftest import read_selftest
from ferrum.proof.numbers import run_case
from tests.devices.test_contract import fill, prompt
from tests.engine.random_rows import fill_random_rows
from tests.gpu.answers import CROWD, FEW, GREEDY, OPTIONS, QUESTIONS, generate
from tests.gpu.carried import ANSWERS
from tests.gpu.conftest import Compile, Questions, Shapes
from tests.gpu.shapes import SHAPES, prompts

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]
SOAK_SECONDS = int(os.environ.get("SOAK_SECONDS", "20"))
# bf16 and int4 against the interpreter in float32, as a share of the largest logit
TOLERANCE = 0.04


def load(path: Path, options: DeviceOptions = OPTIONS, **engine: bool) -> LoadedModel:
    return load_model(path, trust=True, device_options=options, engine_options=EngineOptions(**engine))


@pytest.mark.parametrize("quant", ["f32", "none", "fp8", "int8", "int4-g32"])
def test_the_self_test_passes(gpu: str, compiled: Compile, quant: str) -> None:
    model = load(compiled(gpu, quant))
    test = read_selftest(model.pack)
    try:
        for index, case in enumerate(test.cases):
            found = run_case(model.executor, case, index, test.tolerance)
            good = found.error <= test.tolerance and found.norm_error <= test.tolerance and found.diverged_at_token < 0
            assert good, found
    finally:
        model.close()


@pytest.mark.parametrize("quant", ["none", "int4-g32"])
def test_fifty_questions_as_on_the_cpu(
    gpu: str, compiled: Compile, questions: Questions, prepared: Path | None, quant: str
) -> None:
    model = load(compiled(gpu, quant))
    answers = generate(model.engine, questions(QUESTIONS), GREEDY)[0]
    model.close()
    if prepared is not None:
        assert answers == json.loads((prepared / ANSWERS.format(quant)).read_text(encoding="utf-8"))
        return
    model = load(compiled("cpu", quant))
    assert answers == generate(model.engine, questions(QUESTIONS), GREEDY)[0]
    model.close()


@pytest.mark.parametrize("name", SHAPES)
def test_logits_of_other_shapes_as_on_the_cpu(shapes: Shapes, name: str) -> None:
    shape = shapes(name)
    for quant, path in shape.packs.items():
        model = load(path, replace(OPTIONS, max_samples=64))
        for tokens, wanted in zip(prompts(), shape.logits, strict=True):
            ours = model.engine.logits(tokens)
            assert np.isfinite(ours).all()
            error = np.abs(ours - wanted).max() / np.abs(wanted).max()
            assert error <= (TOLERANCE if quant == "none" else 2 * TOLERANCE), (quant, len(wanted), error)
        model.close()


def test_every_recording_gives_the_same(gpu: str, compiled: Compile) -> None:
    """A prompt in chunks of every bucket's size, and decode in batches of every size."""
    model = load(compiled(gpu), replace(OPTIONS, max_samples=16))
    executor = model.executor
    size, tokens = executor.limits.block_size, prompt(executor, 250)
    table = list(range(-(-len(tokens) // size)))
    wanted = None
    for chunk in (250, 1, 2, 3, 5, 16, 33, 64, 129):
        for start in range(0, len(tokens), chunk):
            fill(executor, [(tokens[start : start + chunk], start, table)])
            executor.step()
        row = executor.logits()[0].copy()
        wanted = row if wanted is None else wanted
        assert np.abs(row - wanted).max() <= TOLERANCE * np.abs(wanted).max(), chunk
    alone = []
    for i in range(16):
        fill(executor, [(prompt(executor, 1, i), 0, [i])])
        executor.step()
        alone.append(executor.logits()[0].copy())
    for count in range(1, 17):
        fill(executor, [(prompt(executor, 1, i), 0, [i]) for i in range(count)])
        executor.step()
        for i, row in enumerate(executor.logits()):
            assert np.abs(row - alone[i]).max() <= TOLERANCE * np.abs(alone[i]).max(), (count, i)
    model.close()


def test_a_step_repeats_to_the_bit(gpu: str, compiled: Compile) -> None:
    model = load(compiled(gpu))
    executor = model.executor
    found = []
    for _ in range(20):
        fill(executor, [(prompt(executor, 40, i), 0, [4 * i, 4 * i + 1, 4 * i + 2]) for i in range(6)])
        executor.step()
        found.append(executor.logits().copy())
    for again in found[1:]:
        np.testing.assert_array_equal(again, found[0])
    model.close()


def test_the_sampler_is_the_reference(gpu: str, compiled: Compile) -> None:
    model = load(compiled(gpu), DeviceOptions(max_seqs=4, max_samples=64, max_tokens=64))
    executor, random, different, rows = model.executor, np.random.default_rng(8), 0, 0
    b = executor.buffers
    for _ in range(20):
        fill_random_rows(executor, random, executor.limits.vocab_size)
        executor.step()
        found = b.out_token[: b.num_samples].copy()
        sample_reference(executor.logits().copy(), b)
        different += int((found != b.out_token[: b.num_samples]).sum())
        rows += b.num_samples
    assert different <= rows // 100, "more than rounding at the borders of the cumulative sum"
    model.close()


def test_steps_ahead_and_preemption_change_nothing(gpu: str, compiled: Compile, questions: Questions) -> None:
    """Of answers that the model is sure of, so up to their end: what was preempted is computed again by kernels that round
    otherwise. All go on behind it, so that blocks run out."""
    path, prompts, params = compiled(gpu), questions(CROWD), replace(GREEDY, ignore_eos=True, max_tokens=48)
    model = load(path, prefix_cache=False)
    assert isinstance(model.executor, OverlappingExecutor)
    wide, none = generate(model.engine, prompts, params)
    model.close()
    assert none == 0
    block = kv_groups(model.pack.manifest)[0].unit_bytes
    tight = load(path, replace(OPTIONS, kv_cache_bytes=30 * block), prefix_cache=False)
    found, preemptions = generate(tight.engine, prompts, params)
    tight.close()
    ends = set(model.pack.manifest.text.eos_token_ids)
    assert [answer(tokens, ends) for tokens in found] == [answer(tokens, ends) for tokens in wide] and preemptions > 5


def answer(tokens: list[int], ends: set[int]) -> list[int]:
    """What comes before the first token that ends an answer."""
    return list(takewhile(lambda token: token not in ends, tokens))


@pytest.mark.timeout(SOAK_SECONDS + 300)
def test_soak(gpu: str, compiled: Compile, questions: Questions) -> None:
    """Requests of all kinds come, go and are aborted; answers stay the same and no memory is lost."""
    model = load(compiled(gpu), replace(OPTIONS, kv_cache_bytes=200 * 16 * 1024))
    engine, prompts = model.engine, questions(FEW)
    wanted, _ = generate(engine, prompts, GREEDY)
    before = free_memory(model)
    random, end, rounds = np.random.default_rng(0), time.monotonic() + SOAK_SECONDS, 0
    while time.monotonic() < end:
        _disturb(engine, random, rounds)
        assert generate(engine, prompts, GREEDY)[0] == wanted, f"round {rounds}"
        rounds += 1
    assert free_memory(model) >= before - (16 << 20), "memory of the GPU is lost"
    print(f"{rounds} rounds, {engine.stats().num_preemptions} preemptions")
    model.close()


def free_memory(model: LoadedModel) -> int:
    """Bytes that the GPU has left; 0 where it cannot be asked."""
    executor = model.executor
    return int(executor.free_memory()) if isinstance(executor, CudaExecutor) else 0


def _disturb(engine: Engine, random: np.random.Generator, number: int) -> None:
    """Random requests, a third of them aborted after some steps."""
    vocab = engine.executor.limits.vocab_size
    names = [f"noise{number}-{i}" for i in range(int(random.integers(1, 30)))]
    for name in names:
        tokens = random.integers(0, vocab, int(random.integers(1, 150))).tolist()
        engine.add(
            name, tokens, SamplingParams(temperature=float(random.choice([0.0, 1.0])), max_tokens=int(random.integers(1, 60)))
        )
    for _ in range(int(random.integers(1, 40))):
        engine.step()
    for name in names[::3]:
        engine.abort(name)
    while engine.has_work:
        engine.step()
