"""What this machine is: architecture, features, devices, measured roofs."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from ferrum import __version__, env

ROOF_UNITS = {
    "read_gb_per_s": "GB/s read from memory",
    "bf16_tflops": "TFLOP/s bf16",
    "int8_tops": "TOP/s int8",
    "f32_tflops": "TFLOP/s f32",
}


def this_machine() -> tuple[str, frozenset[str]]:
    """(architecture, CPU features in the kernel's words)."""
    from ferrum.devices.host import machine_arch, machine_features

    return machine_arch(), machine_features()


def known_roofs() -> dict[str, float]:
    """Limits of this machine that an earlier run measured; empty when none did."""
    try:
        kept = json.loads(_roofs_file().read_text(encoding="utf-8"))
        return {key: float(kept[key]) for key in ROOF_UNITS}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def roofs_with(executor: Any) -> dict[str, float]:
    """Measured now on a loaded model's threads and kept for ``explain`` and ``doctor``; empty if the device cannot."""
    measure = getattr(executor, "measure_roofs", None)
    if measure is None:
        return {}
    found = {key: float(value) for key, value in measure().items()}
    path = _roofs_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(found), encoding="utf-8")
    temporary.replace(path)
    return found


def _roofs_file() -> Path:
    return env.cache_dir() / f"roofs-{_machine_key()}.json"


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
