"""The Metal device on a stand-in for the framework: what it encodes, what it shares, what it says when something fails."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ferrum.devices.metal import MetalDevice, check_family
from ferrum.errors import FerrumError
from ferrum.pack.reader import Pack, open_pack
from tests.devices.conftest import SMALL, fake_metal, load_metal
from tests.devices.null_model import write_launch_pack
from tests.devices.test_contract import fill, prompt


@pytest.fixture
def metal_pack(tmp_path: Path) -> Iterator[Pack]:
    with open_pack(write_launch_pack(tmp_path / "null.fpk", "metal", "apple-m1", "code/step.metal"), trust=True) as pack:
        yield pack


def test_weights_are_read_where_the_pack_is_mapped(metal_pack: Pack) -> None:
    device, kernels = fake_metal()
    executor = load_metal(device, kernels, metal_pack)
    weights = executor._buffers["weights"]
    assert weights.address == metal_pack.address("weights") and weights not in device.buffers


def test_weights_are_copied_when_the_system_refuses(metal_pack: Pack) -> None:
    device, kernels = fake_metal(no_copy=False)
    executor = load_metal(device, kernels, metal_pack)
    assert executor._buffers["weights"] in device.buffers
    fill(executor, [(prompt(executor, 5), 0, [0, 1])])
    executor.step()  # the kernel compares what it reads


def test_a_step_makes_one_command_buffer_and_no_memory(metal_pack: Pack) -> None:
    device, kernels = fake_metal()
    executor = load_metal(device, kernels, metal_pack)
    held = len(device.buffers)
    for tokens in (1, 5, 12):
        fill(executor, [(prompt(executor, tokens), 0, [0, 1, 2])])
        executor.begin()
        assert len(device.committed) == 1
        executor.finish()
    assert len(device.buffers) == held and not device.committed


@pytest.mark.parametrize("family", [1007, 1009])
def test_older_gpus_see_every_pipeline_first(metal_pack: Pack, family: int) -> None:
    device, kernels = fake_metal(family=family)
    executor = load_metal(device, kernels, metal_pack)
    fill(executor, [(prompt(executor, 3), 0, [0])])
    executor.step()  # the encoder of the stand-in checks it


def test_source_that_does_not_compile_is_one_line(metal_pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    device, kernels = fake_metal()
    member = Pack.member
    monkeypatch.setattr(Pack, "member", lambda p, name: memoryview(b"broken") if name.endswith(".metal") else member(p, name))
    with pytest.raises(FerrumError, match="expected ';'") as error:
        load_metal(device, kernels, metal_pack)
    assert error.value.code == "code-unloadable" and "\n" not in str(error.value)


def test_a_missing_kernel_and_too_much_threadgroup_memory_are_named(metal_pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    device, kernels = fake_metal()
    monkeypatch.setattr(type(device), "maxThreadgroupMemoryLength", lambda self: 32 << 10)
    with pytest.raises(FerrumError, match="threadgroup memory"):
        load_metal(device, kernels, metal_pack)
    del device.kernels["null_sample"]
    with pytest.raises(FerrumError, match="no kernel null_sample"):
        load_metal(device, kernels, metal_pack)


def test_a_failed_step_is_one_line(metal_pack: Pack) -> None:
    device, kernels = fake_metal()
    executor = load_metal(device, kernels, metal_pack)
    fill(executor, [(prompt(executor, 3), 0, [0])])
    device.fault = "Caused GPU Address Fault Error"
    with pytest.raises(FerrumError, match="Address Fault") as error:
        executor.step()
    assert error.value.code == "device-failed" and "\n" not in str(error.value)


def test_another_machine_is_refused(metal_pack: Pack, cuda_pack: Pack) -> None:
    device, _ = fake_metal()
    with pytest.raises(FerrumError) as error:
        check_family(device, "apple-m5", "metal-m5", "x.fpk")
    assert error.value.code == "wrong-machine"
    check_family(device, "apple-m1", "metal-m1", "x.fpk")
    with pytest.raises(FerrumError) as error:
        MetalDevice().load(cuda_pack, SMALL)
    assert error.value.code == "wrong-machine"


def test_without_a_mac_it_says_so(metal_pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    with pytest.raises(FerrumError, match="macOS") as error:
        MetalDevice().load(metal_pack, SMALL)
    assert error.value.code == "device-missing"
