"""Every device with a model that it can run here, loaded with given options."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ferrum.devices.base import Executor
from ferrum.devices.cpu import CpuDevice
from ferrum.devices.cuda import CudaExecutor
from ferrum.devices.cuda_driver import Driver, choose_gpu
from ferrum.devices.metal import Metal, MetalExecutor
from ferrum.devices.null import NullDevice
from ferrum.devices.options import DeviceOptions
from ferrum.engine.load import find_device
from ferrum.pack.reader import Pack, open_pack
from tests.devices.fake_cuda import FakeDriver
from tests.devices.fake_metal import FakeApi, FakeDevice, pool
from tests.devices.null_model import NUM_ARGS, NUMBER_ARGS, NullKernels, write_launch_pack
from tests.once import once

SMALL = DeviceOptions(max_seqs=4, max_samples=8, max_tokens=12)


@dataclass
class Loader:
    """Loads a device's model any number of times; everything is closed at the end of the test."""

    name: str
    pack: Pack
    open: Callable[[Pack, DeviceOptions], Executor]
    loaded: list[Executor] = field(default_factory=list)

    def __call__(self, options: DeviceOptions = SMALL) -> Executor:
        self.loaded.append(self.open(self.pack, options))
        return self.loaded[-1]

    def close(self) -> None:
        for executor in self.loaded:
            executor.close()
        self.pack.close()


def build_libcuda(folder: Path) -> Path:
    """``folder``, now with the stand-in for the driver's library, for LD_LIBRARY_PATH; without a compiler a skip."""
    pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
    compiler = next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)
    if compiler is None or sys.platform != "linux":
        pytest.skip("no C compiler for Linux is here")
    folder.mkdir()
    source = Path(__file__).with_name("libcuda.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(folder / "libcuda.so.1"), str(source)], check=True)
    return folder


def fake_driver(**changes: object) -> tuple[FakeDriver, NullKernels]:
    """The stand-in for the driver with the null model's kernels."""
    kernels = NullKernels()
    table = kernels.table()
    driver = FakeDriver(kernels=table, num_params=dict.fromkeys(table, NUM_ARGS), **changes)  # type: ignore[arg-type]
    return driver, kernels


def load_cuda(driver: FakeDriver, kernels: NullKernels, pack: Pack, options: DeviceOptions = SMALL) -> CudaExecutor:
    target = pack.manifest.target
    checked = Driver(driver)
    executor = CudaExecutor(checked, choose_gpu(checked, target.arch, target.name, pack.path.name), pack, options)
    kernels.limits = executor.limits
    return executor


def fake_metal(**changes: object) -> tuple[FakeDevice, NullKernels]:
    """The stand-in for a Mac's GPU with the null model's kernels."""
    kernels = NullKernels()
    return FakeDevice(kernels.table(), number_args=NUMBER_ARGS, **changes), kernels  # type: ignore[arg-type]


def load_metal(device: FakeDevice, kernels: NullKernels, pack: Pack, options: DeviceOptions = SMALL) -> MetalExecutor:
    executor = MetalExecutor(Metal(FakeApi, pool), device, pack, options)
    kernels.limits = executor.limits
    return executor


@pytest.fixture
def cuda_pack(tmp_path: Path) -> Iterator[Pack]:
    with open_pack(write_launch_pack(tmp_path / "null.fpk", "cuda", "sm_89"), trust=True) as pack:
        yield pack


def _open_null(pack: Pack, options: DeviceOptions) -> Executor:
    return NullDevice().load(pack, options)


def _open_cuda(late: bool) -> Callable[[Pack, DeviceOptions], Executor]:
    return lambda pack, options: load_cuda(*fake_driver(late=late), pack, options)


def _open_metal(late: bool) -> Callable[[Pack, DeviceOptions], Executor]:
    return lambda pack, options: load_metal(*fake_metal(late=late), pack, options)


OPENERS = {
    "null": _open_null,
    "cuda-late": _open_cuda(True),
    "cuda-eager": _open_cuda(False),
    "metal-late": _open_metal(True),
    "metal-eager": _open_metal(False),
}


def compile_tiny(run_folder: Path, target: str) -> Path:
    """The built-in model for a GPU, made once per run; what tests it is in the pack for the CPU."""
    command = [sys.executable, "-m", "ferrum", "compile", "tiny", "--target", target, "--no-prove", "-o"]
    return once(run_folder / f"tiny.{target}.fpk", lambda part: subprocess.run([*command, str(part)], check=True, timeout=600))


@pytest.fixture(scope="session")
def tiny_cuda_pack(run_folder: Path) -> Path:
    pytest.importorskip("cuda.bindings.nvrtc", reason="cuda-bindings is not installed")
    return compile_tiny(run_folder, "cuda-sm80")


@pytest.fixture(scope="session")
def tiny_metal_pack(run_folder: Path) -> Path:
    return compile_tiny(run_folder, "metal-m1")


@pytest.fixture(params=["cpu", "emulate", *OPENERS])
def loader(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Loader]:
    name = str(request.param)
    if name == "cpu":
        path, opener = request.getfixturevalue("tiny_pack"), CpuDevice().load
    elif name == "emulate":
        path, opener = request.getfixturevalue("tiny_cuda_pack"), find_device("emulate").load
    else:
        opener = OPENERS[name]
        if name.startswith("metal"):
            path = write_launch_pack(tmp_path / "model.fpk", "metal", "apple-m1", "code/step.metal")
        else:
            path = write_launch_pack(tmp_path / "model.fpk", "cuda", "sm_89")
    loader = Loader(name, open_pack(path, trust=True), opener)
    yield loader
    loader.close()
