"""The CUDA device through the real cuda-bindings, with a library in C in the place of the driver's.

What the stand-in in Python cannot show is how arguments pass through the bindings: structures, enums, addresses, handles.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ferrum.devices.cuda import CudaDevice
from ferrum.devices.cuda_driver import Driver
from ferrum.pack.reader import open_pack
from tests.devices import libcuda_steps
from tests.devices.conftest import build_libcuda, fake_driver
from tests.devices.null_model import launch_table, write_launch_pack


@pytest.fixture
def library(tmp_path: Path) -> Path:
    return build_libcuda(tmp_path / "driver")


def line(name: str, args: tuple[Any, ...]) -> str:
    """A call of the stand-in in Python as the one in C writes it."""
    match name:
        case "cuLaunchKernel":
            said = args[:8]
        case "cuLaunchKernelEx":
            config, symbol = args[:2]
            (attribute,) = config.attrs
            grid, block = ([getattr(config, f"{kind}Dim{axis}") for axis in "XYZ"] for kind in ("grid", "block"))
            allowed = attribute.value.programmaticStreamSerializationAllowed
            said = (symbol, *grid, *block, config.sharedMemBytes, config.numAttrs, int(attribute.id), allowed)
        case "cuLibraryLoadData":
            said = (args[3], args[6])
        case "cuLibraryGetKernel":
            said = (args[1].decode(),)
        case "cuFuncSetAttribute":
            said = (args[0], int(args[1]), args[2])
        case "cuMemcpyHtoDAsync" | "cuMemcpyDtoHAsync" | "cuMemcpyDtoDAsync" | "cuMemsetD8Async":
            said = (args[2],)
        case "cuMemAlloc" | "cuMemHostAlloc" | "cuStreamCreate" | "cuEventCreate" | "cuDeviceGetAttribute":
            said = (int(args[0]),)
        case "cuStreamBeginCapture":
            said = (int(args[1]),)
        case _:
            said = ()
    return " ".join(map(str, (name, *said)))


@pytest.mark.parametrize("early", [False, True])
def test_the_driver_gets_what_the_device_says(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, early: bool
) -> None:
    launches = launch_table("", "").launches
    early_too = [msgspec.structs.replace(launch, on=msgspec.structs.replace(launch.on, early=early)) for launch in launches]
    path = write_launch_pack(tmp_path / "null.fpk", "cuda", "sm_90a", launches=early_too)
    driver, kernels = fake_driver(capability=(9, 0))
    monkeypatch.setattr("ferrum.devices.cuda._ROOF_BYTES", libcuda_steps.ROOF_BYTES)
    monkeypatch.setattr("ferrum.devices.cuda.open_driver", lambda: Driver(driver))
    with open_pack(path, trust=True) as pack:
        executor = CudaDevice().load(pack, libcuda_steps.OPTIONS)
        kernels.limits = executor.limits
        libcuda_steps.put_through(executor)
    log = tmp_path / "calls.txt"
    environment = {**os.environ, "LD_LIBRARY_PATH": str(library), "LIBCUDA_LOG": str(log)}
    command = [sys.executable, "-m", "tests.devices.libcuda_steps", str(path)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stderr
    assert log.read_text().splitlines() == ["cuInit", *(line(*call) for call in driver.calls)]
    assert driver.everything_freed() and ("cuLaunchKernelEx" in log.read_text()) == early
