"""The GPUs of this machine and what is missing to use them, for ``doctor`` and ``verify``. Loads nothing, never raises."""

from __future__ import annotations

from dataclasses import dataclass

from ferrum.devices.cuda_driver import Gpu, driver_version, list_gpus, open_driver
from ferrum.devices.metal import open_metal, runs_here, system_too_old
from ferrum.errors import FerrumError


@dataclass(frozen=True)
class AppleGpu:
    """A Mac's GPU. ``arch`` is the newest target that it runs."""

    name: str
    memory: int
    arch: str
    archs: tuple[str, ...]

    def runs(self, arch: str) -> bool:
        return arch in self.archs


@dataclass(frozen=True)
class Probe:
    """What there is of one kind: GPUs and the driver's version, or one line about what is missing."""

    gpus: tuple[Gpu | AppleGpu, ...]
    driver: str
    missing: str


def probe(device: str) -> Probe:
    """Look for ``cuda`` or ``metal``."""
    try:
        return _probe_cuda() if device == "cuda" else _probe_metal()
    except FerrumError as error:
        return Probe((), "", f"{error.what}: {error.next_step}" if error.next_step else error.what)


def find_gpus(device: str) -> tuple[Gpu | AppleGpu, ...]:
    return probe(device).gpus


def _probe_cuda() -> Probe:
    driver = open_driver()
    gpus = tuple(list_gpus(driver))
    missing = "" if gpus else "the driver lists no GPU: check nvidia-smi and CUDA_VISIBLE_DEVICES"
    return Probe(gpus, f"CUDA {driver_version(driver)}", missing)


def _probe_metal() -> Probe:
    _, device = open_metal()
    chip = runs_here(device)
    archs = tuple(arch for arch in chip if not system_too_old(arch))
    gpu = AppleGpu(str(device.name()), int(device.recommendedMaxWorkingSetSize()), archs[-1] if archs else "", archs)
    missing = "" if archs else f"{system_too_old(chip[0])}: update macOS" if chip else "this GPU is older than any target"
    return Probe((gpu,), "Metal", missing)
