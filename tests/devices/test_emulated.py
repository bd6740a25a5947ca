"""CUDA and Metal devices with real kernels, the stand-ins below them only: the built-in model answers as on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ferrum.devices.base import OverlappingExecutor
from ferrum.devices.cpu import CpuDevice
from ferrum.devices.options import DeviceOptions
from ferrum.engine.engine import Engine
from ferrum.engine.params import SamplingParams
from ferrum.pack.reader import open_pack
from ferrum.pack.selftest import read_selftest
from ferrum.proof.numbers import run_case
from tests.devices.emulated import load_emulated, load_emulated_metal
from tests.gpu.answers import asked, generate

OPTIONS = DeviceOptions(max_seqs=4, max_tokens=64)


@pytest.fixture(scope="module", params=["cuda", "metal"])
def executor(request: pytest.FixtureRequest) -> Iterator[OverlappingExecutor]:
    path = request.getfixturevalue(f"tiny_{request.param}_pack")
    with open_pack(path, trust=True) as pack:
        executor = load_emulated(pack, OPTIONS) if request.param == "cuda" else load_emulated_metal(pack, OPTIONS)
        yield executor
        executor.close()


@pytest.mark.slow
def test_the_self_test_passes(tiny_pack: Path, executor: OverlappingExecutor) -> None:
    with open_pack(tiny_pack, trust=True) as pack:
        test = read_selftest(pack)
    for index, case in enumerate(test.cases):
        found = run_case(executor, case, index, test.tolerance)
        assert found.error <= test.tolerance and found.norm_error <= test.tolerance and found.diverged_at_token < 0, found


@pytest.mark.slow
def test_questions_are_answered_as_on_the_cpu(tiny_pack: Path, executor: OverlappingExecutor) -> None:
    prompts = asked(6)
    params = SamplingParams(temperature=0, max_tokens=24)
    with open_pack(tiny_pack, trust=True) as pack:
        cpu = CpuDevice().load(pack, OPTIONS)
        wanted, _ = generate(Engine(cpu, eos_token_ids=pack.manifest.text.eos_token_ids), prompts, params)
        cpu.close()
        found, _ = generate(Engine(executor, eos_token_ids=pack.manifest.text.eos_token_ids), prompts, params)
    assert found == wanted


@pytest.mark.slow
def test_seeded_sampling_does_not_depend_on_the_batch(executor: OverlappingExecutor) -> None:
    prompts = asked(3)
    params = SamplingParams(temperature=0.8, top_p=0.95, top_k=40, seed=7, max_tokens=8, repetition_penalty=1.1, ignore_eos=True)
    together, _ = generate(Engine(executor), prompts, params)
    alone = [generate(Engine(executor), [prompt], params)[0][0] for prompt in prompts]
    assert together == alone
