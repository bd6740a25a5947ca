"""The CUDA driver through the package cuda-bindings: calls that are checked, and the GPUs of this machine.

The package imports on any machine; what is missing (the package, the driver, a GPU) is found when the driver is opened.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from ferrum.devices.cuda_archs import TEGRA, Capability, arch_of, runs_on
from ferrum.devices.launching import out_of_memory
from ferrum.errors import FerrumError


@dataclass(frozen=True)
class Gpu:
    """A GPU as the driver lists it. ``capability`` is (major, minor); ``CUDA_VISIBLE_DEVICES`` chooses and orders."""

    ordinal: int
    name: str
    capability: Capability
    memory: int
    multiprocessors: int

    def runs(self, arch: str) -> bool:
        return runs_on(self.capability, arch)

    @property
    def arch(self) -> str:
        return arch_of(self.capability)


class Driver:
    """``cuda.bindings.driver``, or something that behaves like it, with errors as FerrumError."""

    def __init__(self, api: Any, where: str = "cuda") -> None:
        self.api = api
        self.where = where

    def call(self, name: str, *args: Any) -> Any:
        """Call the driver's function ``name``; its value, a tuple of several, or None. Raises FerrumError when it fails."""
        status, *values = getattr(self.api, name)(*args)
        if int(status):
            raise self._error(name, status)
        return values[0] if len(values) == 1 else tuple(values) or None

    def _error(self, name: str, status: Any) -> FerrumError:
        code = getattr(status, "name", str(status))
        if code == "CUDA_ERROR_OUT_OF_MEMORY":
            return out_of_memory(f"the GPU has no room ({name})", self.where)
        return FerrumError(
            "device-failed",
            f"{name} failed: {code}",
            self.where,
            "check the GPU with nvidia-smi and the pack with ferrum verify --numeric",
        )


def open_driver() -> Driver:
    """The driver of this machine, ready for use. Raises FerrumError: the package or the driver is missing, or refuses."""
    try:
        api = importlib.import_module("cuda.bindings.driver")
    except ImportError:
        raise missing("the package cuda-bindings is not installed", "pip install 'ferrum-infer[cuda]'") from None
    driver = Driver(api)
    try:
        (status,) = api.cuInit(0)
    except RuntimeError:  # DynamicLibNotFoundError: libcuda.so is nowhere
        raise missing("there is no NVIDIA driver on this machine", "install it, or use a pack for cpu") from None
    if int(status):
        code = getattr(status, "name", str(status))
        raise missing(f"the NVIDIA driver does not start: {code}", "check it with nvidia-smi")
    return driver


def missing(what: str, next_step: str) -> FerrumError:
    return FerrumError("device-missing", what, "cuda", next_step)


def driver_version(driver: Driver) -> str:
    """The newest CUDA that the driver knows, such as "13.0"."""
    version = int(driver.call("cuDriverGetVersion"))
    return f"{version // 1000}.{version % 1000 // 10}"


def list_gpus(driver: Driver) -> list[Gpu]:
    """The GPUs in the driver's order."""
    attribute = driver.api.CUdevice_attribute
    found = []
    for ordinal in range(int(driver.call("cuDeviceGetCount"))):
        device = driver.call("cuDeviceGet", ordinal)
        major, minor, multiprocessors = (
            int(driver.call("cuDeviceGetAttribute", getattr(attribute, f"CU_DEVICE_ATTRIBUTE_{name}"), device))
            for name in ("COMPUTE_CAPABILITY_MAJOR", "COMPUTE_CAPABILITY_MINOR", "MULTIPROCESSOR_COUNT")
        )
        name = bytes(driver.call("cuDeviceGetName", 256, device)).split(b"\0")[0].decode("utf-8", "replace")
        memory = int(driver.call("cuDeviceTotalMem", device))
        found.append(Gpu(ordinal, name, (major, minor), memory, multiprocessors))
    return found


def choose_gpu(driver: Driver, arch: str, target: str, where: str) -> Gpu:
    """The first GPU that runs code for ``arch``. Raises FerrumError naming the GPUs that are there."""
    gpus = list_gpus(driver)
    if not gpus:
        raise missing("the NVIDIA driver lists no GPU", "check nvidia-smi and CUDA_VISIBLE_DEVICES")
    for gpu in gpus:
        if gpu.runs(arch):
            return gpu
    here = ", ".join(f"{gpu.name} ({gpu.arch})" for gpu in gpus)
    apart = "; a Tegra runs no code but its own" if any(gpu.capability in TEGRA for gpu in gpus) else ""
    raise FerrumError(
        "wrong-machine",
        f"the pack is for {target} and this machine has {here}{apart}",
        where,
        "compile with --target cuda on this machine",
    )
