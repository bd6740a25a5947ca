"""Whole CUDA packs in emulation: answers, logits, batches, records."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ferrum import LLM, SamplingParams
from ferrum.codegen.driver import compile_targets
from ferrum.codegen.options import CompileOptions
from ferrum.devices.cpu import CpuDevice
from ferrum.devices.emulate import SCHEDULES
from ferrum.devices.emulate.device import EmulatedDevice
from ferrum.devices.options import DeviceOptions
from ferrum.errors import FerrumError
from ferrum.pack.launches import LAUNCHES_NAME, decode_table
from ferrum.pack.proof import PROOF_NAME, decode_proof
from ferrum.pack.reader import open_pack
from tests.codegen.conftest import RandomPack

pytest.importorskip("cuda.bindings.nvrtc", reason="cuda-bindings is not installed")
TINY = Path(__file__).parents[2] / "graphs" / "tiny" / "model"


def answers(pack: Path, prompts: list[list[int]], device: str) -> list[list[int]]:
    params = SamplingParams(temperature=0, max_tokens=24)
    with LLM(str(pack), device=device, trust=True, max_num_seqs=8) as llm:
        return [list(out.token_ids) for out in llm.generate(prompts, params)]


def test_cpus_refuse_8_bit_floats() -> None:
    with pytest.raises(FerrumError) as caught:
        compile_targets(CompileOptions(str(TINY), target="cpu-avx2", quant="fp8"))
    assert str(caught.value) == "cpu-avx2 has no kernels for weights in fp8 · --quant · use int8, or a cuda or metal target"


def test_gpus_refuse_activations_in_float32() -> None:
    with pytest.raises(FerrumError) as caught:
        compile_targets(CompileOptions(str(TINY), target="cuda-sm89", activations="f32"))
    what = "cuda-sm89 multiplies matrices with activations in bf16 only · --activations · leave it out, or use a cpu target"
    assert str(caught.value) == what


@pytest.mark.slow
@pytest.mark.parametrize("quant", ["none", "int4a-g32", *(pytest.param(q, marks=pytest.mark.sweep) for q in ("f32", "int8"))])
def test_logits_of_a_batch(random_pack: RandomPack, quant: str) -> None:
    """Prompts in chunks, decode beside prefill, blocks out of order; every schedule gives what the CPU gives."""
    proved = quant == "none"  # one of them, kernels and the whole model
    paths = {"cpu": random_pack(quant), "gpu": random_pack(quant, "cuda-sm80", prove=proved)}
    if proved:
        check_proof(paths["gpu"])
    options = DeviceOptions(max_seqs=4, max_tokens=96, max_model_len=128)
    logits = {}
    devices = {"cpu": CpuDevice(), "gpu": EmulatedDevice(), "gpu, reverse": EmulatedDevice(SCHEDULES[2])}
    for name, device in devices.items():
        with open_pack(paths[name[:3]], trust=True) as pack:
            executor = device.load(pack, options)  # type: ignore[attr-defined]
            logits[name] = run_steps(executor)
            executor.close()
    scale = np.abs(logits["cpu"]).max()
    allowed = {"f32": 1e-3, "none": 2e-2}.get(quant, 0.12)  # the CPU rounds activations to bytes and its head to 6 bits
    for name in ("gpu", "gpu, reverse"):
        assert np.abs(logits[name] - logits["cpu"]).max() <= allowed * scale
    assert np.array_equal(logits["gpu"], logits["gpu, reverse"])


def run_steps(executor: object) -> np.ndarray:
    """Three sequences: a prompt in two chunks, one token, a prompt that decodes while another is read."""
    random, b = np.random.default_rng(5), executor.buffers  # type: ignore[attr-defined]
    tables = random.permutation(24).reshape(3, 8)
    tokens = random.integers(0, 1000, (3, 128))
    found: list[np.ndarray] = []
    done = [0, 0, 0]
    for lengths in ((70, 1, 20), (20, 1, 1), (1, 1, 1)):
        b.num_tokens, b.num_seqs, b.num_samples = sum(lengths), 3, 3
        at = 0
        for s, n in enumerate(lengths):
            b.tokens[at : at + n] = tokens[s, done[s] : done[s] + n]
            b.positions[at : at + n] = np.arange(done[s], done[s] + n)
            b.query_start[s], done[s] = at, done[s] + n
            b.context_len[s], b.block_table[s, 0, :8], b.sample_rows[s] = done[s], tables[s], at + n - 1
            at += n
        b.query_start[3] = at
        b.temperature[:3], b.top_p[:3], b.repetition_penalty[:3], b.num_logprobs[:3] = 0, 1, 1, -1
        executor.step()  # type: ignore[attr-defined]
        found.append(executor.logits().copy())  # type: ignore[attr-defined]
        assert np.array_equal(b.out_token[:3], found[-1].argmax(-1))
    return np.stack(found)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_several_targets_share_what_they_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One command, two packs: the same weights, their own code, proved by kernels and as a whole in emulation. Alone and in
    another process the same bytes."""
    monkeypatch.chdir(tmp_path)
    options = CompileOptions(str(TINY), target="cuda-sm80,cuda-sm90", name="tiny")
    paths = compile_targets(options)
    assert [p.name for p in paths] == ["tiny.cuda-sm80.fpk", "tiny.cuda-sm90.fpk"]
    first = [p.read_bytes() for p in paths]
    with open_pack(paths[0]) as a, open_pack(paths[1]) as b:
        assert bytes(a.weights) == bytes(b.weights) and bytes(a.member("code/step.cubin")) != bytes(b.member("code/step.cubin"))
    for path in paths:
        check_proof(path)
    assert made_again("cuda-sm90", "keep", tmp_path / "again.fpk") == first[1]


MAKE = """
from pathlib import Path
from sys import argv
from ferrum.codegen.driver import compile_model
from ferrum.codegen.options import CompileOptions
compile_model(CompileOptions(argv[1], target=argv[2], quant=argv[3], output=Path(argv[4]), name="tiny", jobs=1))
"""


def made_again(target: str, quant: str, output: Path) -> bytes:
    """The built-in model's pack from another process, in which texts have other hashes."""
    command = [sys.executable, "-c", MAKE, str(TINY), target, quant, str(output)]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": "7"}, timeout=300)
    return output.read_bytes()


def check_proof(path: Path) -> None:
    """Every kernel that is launched was tried and was right."""
    with open_pack(path) as pack:
        proof, table = decode_proof(pack.member(PROOF_NAME)), decode_table(pack.member(LAUNCHES_NAME))
        assert {k.symbol for k in proof.kernels} == {launch.symbol for launch in table.launches}
        assert proof.whole_model and all(max(k.errors.values()) <= k.tolerance for k in proof.kernels)


def test_no_target_twice_and_no_common_output(tmp_path: Path) -> None:
    with pytest.raises(FerrumError, match="twice"):
        compile_targets(CompileOptions(str(TINY), target="cuda-sm80,cuda-sm80"))
    with pytest.raises(FerrumError, match="one target"):
        compile_targets(CompileOptions(str(TINY), target="cuda-sm80,cuda-sm86", output=tmp_path / "x.fpk"))
