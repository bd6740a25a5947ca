"""Whole Metal packs in emulation: answers, logits, batches, records."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ferrum.codegen.driver import compile_targets
from ferrum.codegen.options import CompileOptions
from ferrum.codegen.target import BY_NAME, GPU_TARGETS, GpuTarget
from ferrum.codegen.toolchains.metal import MetalSource, find_metal
from ferrum.devices.cpu import CpuDevice
from ferrum.devices.emulate import SCHEDULES
from ferrum.devices.emulate.device import EmulatedDevice
from ferrum.devices.options import DeviceOptions
from ferrum.errors import FerrumError
from ferrum.pack.launches import LAUNCHES_NAME, decode_table
from ferrum.pack.reader import open_pack
from tests.codegen.conftest import RandomPack
from tests.codegen.test_cuda_pack import TINY, check_proof, made_again, run_steps


@pytest.mark.parametrize("quant", ("none", *(pytest.param(quant, marks=pytest.mark.slow) for quant in ("int4a-g32", "f32"))))
def test_logits_of_a_batch(random_pack: RandomPack, quant: str) -> None:
    """Prompts in chunks, decode beside prefill, blocks out of order; every schedule gives what the CPU gives."""
    proved = quant == "none"  # one of them, kernels and the whole model
    paths = {"cpu": random_pack(quant), "gpu": random_pack(quant, "metal-m1", prove=proved)}
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


def test_every_generation_is_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one command: the weights are the same."""
    monkeypatch.chdir(tmp_path)
    targets = [target for target in GPU_TARGETS if target.device == "metal"]
    options = CompileOptions(str(TINY), target=",".join(target.name for target in targets), name="tiny", prove=False)
    for target, path in zip(targets, compile_targets(options), strict=True):
        with open_pack(path, trust=True) as pack, open_pack(f"tiny.{targets[0].name}.fpk") as first:
            source = bytes(pack.member("code/step.metal")).decode()
            assert ("simdgroup_matrix<bfloat" in source) == target.has_bf16
            assert bytes(pack.weights) == bytes(first.weights)
            assert all(launch.on.shared <= 32 << 10 for launch in decode_table(pack.member(LAUNCHES_NAME)).launches)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_several_targets_have_proofs_of_all_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels alone and the whole model in emulation; for one target alone and in another process, the same bytes."""
    monkeypatch.chdir(tmp_path)
    options = CompileOptions(str(TINY), target="metal-m1,metal-m5", quant="int4-g32", name="tiny")
    paths = compile_targets(options)
    first = [p.read_bytes() for p in paths]
    for path in paths:
        check_proof(path)
    assert made_again("metal-m5", "int4-g32", tmp_path / "again.fpk") == first[1]


def test_a_source_that_mixes_address_spaces_is_refused(tmp_path: Path) -> None:
    target = BY_NAME["metal-m1"]
    assert isinstance(target, GpuTarget) and (isinstance(find_metal(), MetalSource) or find_metal().member.endswith("metallib"))
    source = """#include <metal_stdlib>
using namespace metal;
kernel void wrong(device float *x [[buffer(0)]]) {
  threadgroup float *y = x;
  y[0] = 1.0f;
}
"""
    with pytest.raises(FerrumError) as caught:
        MetalSource().compile(source, target, tmp_path)
    assert caught.value.code == "toolchain-failed" and "SOURCE" not in caught.value.next_step
    assert (tmp_path / "step.metal").read_text() == source and "error" in (tmp_path / "stderr.txt").read_text()
