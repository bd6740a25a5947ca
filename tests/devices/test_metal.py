"""The Metal device on a stand-in for the framework: what it encodes, what it shares, what it says when something fails."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferrum.codegen.target import GPU_TARGETS
from ferrum.devices import metal
from ferrum.devices.metal import MetalDevice, check_machine, split, system_too_old
from ferrum.devices.null import NullExecutor
from ferrum.errors import FerrumError
from ferrum.pack.reader import Pack, open_pack
from tests.devices.conftest import SMALL, fake_metal, load_metal
from tests.devices.null_model import BLOCK_SIZE, BYTES_PER_BLOCK, write_launch_pack
from tests.devices.test_contract import fill, prompt
from tests.pack.helpers import KERNEL


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


@pytest.fixture
def heavy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chip for which a token of the null model is a third of what one command buffer may do."""
    kv = BYTES_PER_BLOCK // BLOCK_SIZE
    work = KERNEL.flops_per_token + 5 * metal._SHARED_KEYS * kv
    monkeypatch.setattr(metal, "_MAX_WORK", 3 * work)


@pytest.mark.parametrize("late", [False, True])
def test_a_long_step_is_several_command_buffers(metal_pack: Pack, heavy: None, late: bool) -> None:
    device, kernels = fake_metal(late=late)
    executor = load_metal(device, kernels, metal_pack)
    wanted = NullExecutor(executor.limits)
    ran: list[int] = []
    commit = type(device.commandBuffer()).commit
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(device.commandBuffer()), "commit", lambda self: (ran.append(len(self.work)), commit(self))[1])
        for tokens, expected in ((5, [1, 1]), (1, [2]), (3, [2])):
            ran.clear()
            for each in (executor, wanted):
                fill(each, [(prompt(each, 5)[5 - tokens :], 5 - tokens, [0, 1])])
            executor.begin()
            wanted.step()
            assert ran == expected, "each command once, in order, in as few command buffers as are short"
            assert executor.finish().out_token[0] == wanted.buffers.out_token[0]
    assert not device.committed


def test_a_failure_in_the_first_of_several_is_found(metal_pack: Pack, heavy: None) -> None:
    device, kernels = fake_metal()
    executor = load_metal(device, kernels, metal_pack)
    fill(executor, [(prompt(executor, 5), 0, [0, 1])])
    executor.begin()
    device.fault = "Caused GPU Timeout Error"
    device.committed[0].waitUntilCompleted()
    device.fault = ""
    with pytest.raises(FerrumError, match="Timeout"):
        executor.finish()


@given(st.integers(1, 300), st.floats(0, 1000))
def test_pieces_are_whole_and_of_one_size(count: int, work: float) -> None:
    pieces = split(count, work)
    assert [i for start, stop in pieces for i in range(start, stop)] == list(range(count))
    sizes = [stop - start for start, stop in pieces]
    assert max(sizes) - min(sizes) <= 1 and (len(pieces) >= work or max(sizes) == 1)


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


def on_macos(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr("platform.mac_ver", lambda: (version, ("", "", ""), "arm64"))


def test_another_machine_is_refused(metal_pack: Pack, cuda_pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    device, _ = fake_metal()
    on_macos(monkeypatch, "15.1")
    with pytest.raises(FerrumError) as error:
        check_machine(device, "apple-m5", "metal-m5", "x.fpk")
    assert error.value.code == "wrong-machine"
    check_machine(device, "apple-m1", "metal-m1", "x.fpk")
    with pytest.raises(FerrumError) as error:
        MetalDevice().load(cuda_pack, SMALL)
    assert error.value.code == "wrong-machine"


def test_a_library_is_kept_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several processes that load the same code at once each write a file of their own."""
    monkeypatch.setenv("FERRUM_CACHE", str(tmp_path))
    code = bytes(range(256)) * 512
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(metal.library_file, [code] * 8))
    assert len(paths) == 1 and paths.pop().read_bytes() == code
    other = metal.library_file(b"other")
    other.unlink()
    other.with_suffix(".tmp").mkdir()  # what another one is writing is not ours to write to
    assert metal.library_file(b"other").read_bytes() == b"other"
    assert sorted(p.suffix for p in other.parent.iterdir()) == [".metallib", ".metallib", ".tmp"]


def test_code_is_compiled_in_the_language_of_its_target(tmp_path: Path) -> None:
    assert {t.arch: t.driver for t in GPU_TARGETS if t.device == "metal"} == {
        arch: f"metal{chip.language[0]}.{chip.language[1]}" for arch, chip in metal._CHIPS.items()
    }
    for arch, version in (("apple-m1", 0x30002), ("apple-m5", 0x40000)):
        path = write_launch_pack(tmp_path / f"{arch}.fpk", "metal", arch, "code/step.metal")
        with open_pack(path, trust=True) as pack:
            device, kernels = fake_metal(family=1010)
            load_metal(device, kernels, pack)
            assert device.language == version


@pytest.mark.parametrize(
    ("arch", "version", "sentence"),
    [
        ("apple-m1", "14.6.1", "Metal 3.2, which macOS 15 brought, and this machine has macOS 14.6.1"),
        ("apple-m4", "15.0", ""),
        ("apple-m5", "15.7", "Metal 4.0, which macOS 26 brought"),
        ("apple-m5", "16.0", ""),  # what macOS 26 says to a program that was built before it
        ("apple-m5", "26.1", ""),
    ],
)
def test_an_old_system_is_named(arch: str, version: str, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    on_macos(monkeypatch, version)
    said = system_too_old(arch)
    assert sentence in said and bool(said) == bool(sentence)
    device, _ = fake_metal(family=1010)
    if sentence:
        with pytest.raises(FerrumError, match=r"macOS") as error:
            check_machine(device, arch, "metal", "x.fpk")
        assert error.value.code == "wrong-machine" and error.value.next_step == "update macOS"


def test_without_a_mac_it_says_so(metal_pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    with pytest.raises(FerrumError, match="macOS") as error:
        MetalDevice().load(metal_pack, SMALL)
    assert error.value.code == "device-missing"
