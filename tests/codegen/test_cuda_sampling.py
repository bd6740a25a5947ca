"""The sampler for GPUs against the reference in numpy, on a model's own logits, whole packs in emulation."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from ferrum.codegen.kernels.cases import Bench
from ferrum.codegen.kernels.sample import _CHUNK, _THREADS, SamplePeaks
from ferrum.codegen.render import render_kernels
from ferrum.codegen.target import parse_target
from ferrum.devices.base import Executor
from ferrum.devices.emulate import SCHEDULES, build
from ferrum.devices.emulate.device import EmulatedDevice
from ferrum.devices.options import DeviceOptions
from ferrum.pack.reader import open_pack
from tests.codegen import test_sampling as cpu
from tests.codegen.conftest import RandomPack

pytestmark = pytest.mark.slow  # one source serves CUDA and Metal, whose tests are quick
ROWS = cpu.ROWS


@pytest.fixture(scope="module")
def executor(random_pack: RandomPack) -> Iterator[Executor]:
    pytest.importorskip("cuda.bindings.nvrtc", reason="cuda-bindings is not installed")
    path = random_pack("f32", "cuda-sm80")
    with open_pack(path, trust=True) as pack:
        made = EmulatedDevice().load(pack, DeviceOptions(max_seqs=2, max_tokens=ROWS, max_samples=ROWS, max_model_len=64))
        yield made
        made.close()


def test_greedy_is_the_largest_logit(executor: Executor) -> None:
    cpu.test_greedy_is_the_largest_logit(executor)


@pytest.mark.parametrize(("top_k", "top_p", "min_p"), cpu.CUTS)
def test_draws_are_the_references(executor: Executor, top_k: int, top_p: float, min_p: float) -> None:
    agreed = []
    for seed, temperature in enumerate((0.3, 1.0, 3.0)):
        b = cpu.plain_step(executor, np.random.default_rng(seed))
        b.temperature[:], b.top_k[:], b.top_p[:], b.min_p[:] = temperature, top_k, top_p, min_p
        agreed.append(cpu.compare(executor))
    # the exponential is float32 on the device and float64 in the reference: a draw at a border may differ
    assert np.mean(agreed) >= 0.98


def test_penalties_bias_and_mask(executor: Executor) -> None:
    cpu.test_penalties_bias_and_mask(executor)


def test_the_same_draw_gives_the_same_token(executor: Executor) -> None:
    cpu.test_the_same_draw_gives_the_same_token(executor)


def test_logprobs_are_of_the_raw_distribution(executor: Executor) -> None:
    cpu.test_logprobs_are_of_the_raw_distribution(executor)


def test_a_trial_of_few_tokens_is_fair() -> None:
    """Where biases cancel logits, what is left differs in more than its last digit: not a fault of the kernel."""
    target = parse_target("cuda-sm89")
    kernel = SamplePeaks(64, min(_THREADS, target.max_threads), _CHUNK)
    bench = Bench(build(render_kernels("trial", [kernel], target, ""), "cuda"), SCHEDULES[0])
    assert [bench.error(kernel, kernel.case(np.random.default_rng(seed))) for seed in range(50)] == [0.0] * 50
