"""This machine as a pack sees it: architecture, CPU features, cores, memory that is free."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

PROC, SYS = Path("/proc"), Path("/sys")
# Features of x86-64 whose registers a process must ask the kernel for.
_TILES = "amx_"
# Of Linux on x86-64: the call, its request for a process's permission, and the state component of the tiles.
_ARCH_PRCTL, _REQUEST, _TILE_DATA = 158, 0x1023, 18


def machine_arch() -> str:
    """``x86_64`` or ``aarch64``, whatever the system calls it."""
    machine = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)


def _cpuinfo(proc: Path, *keys: str) -> str:
    """The value of the first line of /proc/cpuinfo with one of these keys; empty where the system has none."""
    try:
        lines = (proc / "cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    parts = (line.partition(":") for line in lines)
    return next((value.strip() for key, _, value in parts if key.strip() in keys), "")


@cache
def tiles_refused() -> str:
    """Why this process may not use tile registers, in the system's words; empty where it may.

    Asking is what gives the permission: to all threads, those to come included, and to processes that are forked.
    """
    import ctypes  # for the few CPUs that have tiles; listing packs needs nothing of it

    if not sys.platform.startswith("linux") or machine_arch() != "x86_64":
        return "this system gives none"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(_ARCH_PRCTL, _REQUEST, _TILE_DATA) == 0:
        return ""
    return os.strerror(ctypes.get_errno())


def machine_features(proc: Path = PROC, refused: Callable[[], str] = tiles_refused) -> frozenset[str]:
    """CPU features in the Linux kernel's words, and who made it; empty where the system does not list them.

    What is listed can be used: without tiles where the kernel refuses them, as ``refused`` says.
    """
    listed = _cpuinfo(proc, "flags", "Features").split()
    usable = [flag for flag in listed if not flag.startswith(_TILES)] if tiles_note(proc, refused) else listed
    return frozenset(usable) | frozenset(filter(None, (machine_vendor(proc),)))


def tiles_note(proc: Path = PROC, refused: Callable[[], str] = tiles_refused) -> str:
    """What keeps a CPU's tiles from being used; empty where nothing does, or it has none."""
    has = any(flag.startswith(_TILES) for flag in _cpuinfo(proc, "flags", "Features").split())
    reason = refused() if has else ""
    return f"the CPU has tiles, and the system refuses them: {reason}" if reason else ""


def machine_vendor(proc: Path = PROC) -> str:
    """Who made the CPU, in its own words, as ``GenuineIntel``; empty where the system does not say."""
    return _cpuinfo(proc, "vendor_id")


def cpu_quota(proc: Path = PROC, sys: Path = SYS) -> float:
    """Cores that a container or a service may keep busy, whatever the machine has; infinite where nothing limits it.

    Threads beyond them would be stopped for a part of each period, all at once, and those that wait for them as well.
    """
    folders = [sys / "fs/cgroup/cpu"]  # control groups of version 1, as a container sees its own
    with contextlib.suppress(OSError):
        named = [line[3:] for line in (proc / "self/cgroup").read_text().splitlines() if line.startswith("0::")]
        own = Path(named[0].lstrip("/") if named else "")
        folders += [sys / "fs/cgroup" / part for part in (own, *own.parents)]
    return min(map(_quota, folders))


def _quota(folder: Path) -> float:
    """Of one control group: microseconds of a period, in version 2 in one file and in version 1 in two."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 else math.inf
    except (OSError, ValueError):  # no such group, or no limit, which is a word in version 2
        return math.inf


def default_threads(cores: int, quota: float) -> int:
    """Threads of a loaded model when nobody says how many: as many as run at once."""
    return max(1, min(cores, int(min(quota, cores))))


def free_memory(proc: Path = PROC) -> int:
    """Bytes that can be allocated without swapping: the system's estimate, or the cgroup's remainder if that is less."""
    available = 1 << 62
    try:
        for line in (proc / "meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                available = int(line.split()[1]) * 1024
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit != "max":
            available = min(available, int(limit) - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    except (OSError, ValueError):
        pass
    return max(available, 0)
