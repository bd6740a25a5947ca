"""What this machine is: architecture, features, devices, measured roofs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ferrum import env
from ferrum.errors import FerrumError
from ferrum.pack.atomic import write_atomic
from ferrum.version import __version__

if TYPE_CHECKING:
    from collections.abc import Collection

    from ferrum.pack.schema import Manifest, TargetRecord

ROOF_UNITS = {
    "read_gb_per_s": "GB/s read from memory",
    "bf16_tflops": "TFLOP/s bf16",
    "int8_tops": "TOP/s int8",
    "f32_tflops": "TFLOP/s f32",
    "bf16_tile_tflops": "TFLOP/s bf16 in tiles",
    "int8_tile_tops": "TOP/s int8 in tiles",
}
_OF_TILES = ("bf16_tile_tflops", "int8_tile_tops")


def this_machine() -> tuple[str, frozenset[str]]:
    """(architecture, CPU features in the kernel's words)."""
    from ferrum.devices.host import machine_arch, machine_features

    return machine_arch(), machine_features()


def taken_variant(manifest: Manifest) -> str:
    """The variant of a pack's code that this CPU takes; empty where it takes none, or the pack is for another device."""
    arch, features = this_machine()
    if (manifest.target.device, manifest.target.arch) != ("cpu", arch):
        return ""
    return next((code.name for code in manifest.code if {*manifest.target.features, *code.features} <= features), "")


def machine_for(target: TargetRecord) -> tuple[str, Collection[str]] | None:
    """(architecture, features) of this machine's device of the target's kind; None when there is none to ask."""
    if target.device == "cpu":
        return this_machine()
    from ferrum.devices.gpus import find_gpus

    gpus = find_gpus(target.device)
    if any(gpu.runs(target.arch) for gpu in gpus):
        return target.arch, target.features
    return (gpus[0].arch, ()) if gpus else None


def known_roofs(target: TargetRecord | None = None) -> dict[str, float]:
    """Limits of this machine's device that an earlier run measured (of the CPU without a target); empty when none did."""
    try:
        kept = json.loads(_roofs_file(target).read_text(encoding="utf-8"))
        return {key: float(kept[key]) for key in ROOF_UNITS if key in kept or key == "read_gb_per_s"}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def roofs_with(executor: Any, target: TargetRecord | None = None) -> dict[str, float]:
    """Measured now on a loaded model's device and kept for ``explain`` and ``doctor``; empty if the device cannot.

    Code that has no tiles cannot measure them: what was measured of them before is kept.
    """
    measure = getattr(executor, "measure_roofs", None)
    if measure is None:
        return {}
    found = {key: float(value) for key, value in measure().items()}
    path = _roofs_file(target)
    with contextlib.suppress(OSError, FerrumError):  # a cache: what was measured is still shown
        path.parent.mkdir(parents=True, exist_ok=True)
        before = {key: value for key, value in known_roofs(target).items() if key in _OF_TILES}
        write_atomic(path, json.dumps(before | found).encode())
    return found


def _roofs_file(target: TargetRecord | None) -> Path:
    kind = "" if target is None or target.device == "cpu" else f"{target.device}-{target.arch}-"
    return env.cache_dir() / f"roofs-{kind}{_machine_key()}.json"


def _machine_key() -> str:
    """Changes with the CPU, the number of usable cores and the version of ferrum."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        model = next((line for line in lines if line.startswith("model name")), "")
    except OSError:
        model = ""
    return hashlib.sha256(f"{model}|{cores()}|{__version__}".encode()).hexdigest()[:12]


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> tuple[int, int]:
    """(all, available) bytes of memory; zeros where /proc does not exist."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0, 0
    table = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith("kB")}
    return table.get("MemTotal", 0), table.get("MemAvailable", 0)
