"""Which cores and memory of this machine a model runs on: one thread a core, the fastest first, weights spread over its nodes."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ferrum.devices.host import SYS, machine_arch

_SET_MEMPOLICY = {"x86_64": 238, "aarch64": 237}
_GET_MEMPOLICY = {"x86_64": 239, "aarch64": 236}
MPOL_DEFAULT, MPOL_INTERLEAVE = 0, 3
_SMALL = ("cpu_atom", "cpu_lowpower")  # of the cores of a hybrid x86 processor; the second kind is the slowest


def allowed_cpus() -> list[int]:
    """Ids of the logical CPUs this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def usable_cpus(tree: Path = SYS) -> list[int]:
    """Ids of the logical CPUs that get a thread: one of each core, since the second thread of a core adds no bandwidth.

    The fastest cores come first, as the thread that begins a step is the first; of equal ones those of a node are together.
    """
    places = tree / "devices/system/cpu"
    seen: set[str] = set()
    cores = []
    for cpu in allowed_cpus():
        siblings = _text(places / f"cpu{cpu}/topology/thread_siblings_list") or str(cpu)
        if siblings not in seen:
            seen.add(siblings)
            cores.append(cpu)
    slow = {cpu: rank for rank, kind in enumerate(_SMALL, 1) for cpu in _ids(_text(tree / f"devices/{kind}/cpus"))}
    capacity = {cpu: sum(_ids(_text(places / f"cpu{cpu}/cpu_capacity"))) for cpu in cores}  # of arm64: up to 1024
    node = {cpu: number for number, cpus in enumerate(_nodes(tree).values()) for cpu in cpus}
    return sorted(cores, key=lambda cpu: (slow.get(cpu, 0), -capacity[cpu], node.get(cpu, 0), cpu))


def memory_nodes(tree: Path = SYS) -> list[int]:
    """Nodes with memory of their own whose cores this process may use; empty where the system does not tell."""
    allowed = set(allowed_cpus())
    with_memory = set(_ids(_text(tree / "devices/system/node/has_memory")))
    return [node for node, cpus in _nodes(tree).items() if node in with_memory and allowed & set(cpus)]


def spreads(nodes: Sequence[int]) -> bool:
    """Whether the calling thread may spread its memory over ``nodes``: a policy that is set stays, and containers may refuse."""
    return sys.platform == "linux" and len(nodes) > 1 and policy() == MPOL_DEFAULT


def spread_over(nodes: Sequence[int]) -> bool:
    """Let memory that the calling thread is the first to touch, or to read from a file, lie on ``nodes`` in turn.

    Returns whether it will. A policy that somebody has set, by ``numactl`` say, stays.
    """
    if not spreads(nodes):
        return False
    words = max(nodes) // 64 + 1
    mask = (ctypes.c_uint64 * words)()
    for node in nodes:
        mask[node // 64] |= 1 << node % 64
    return _call(_SET_MEMPOLICY, MPOL_INTERLEAVE, ctypes.byref(mask), ctypes.c_ulong(64 * words + 1)) == 0


def policy() -> int:
    """Memory policy of the calling thread (set_mempolicy(2)); -1 where the system has none."""
    mode = ctypes.c_int(MPOL_DEFAULT)
    return mode.value if _call(_GET_MEMPOLICY, ctypes.byref(mode), None, ctypes.c_ulong(0), None, ctypes.c_ulong(0)) == 0 else -1


def _call(numbers: dict[str, int], *arguments: object) -> int:
    number = numbers.get(machine_arch())
    return -1 if number is None or sys.platform != "linux" else int(ctypes.CDLL(None).syscall(number, *arguments))


def _nodes(tree: Path) -> dict[int, list[int]]:
    """CPUs by node."""
    places = tree / "devices/system/node"
    return {node: _ids(_text(places / f"node{node}/cpulist")) for node in _ids(_text(places / "online"))}


def _ids(text: str) -> list[int]:
    """The numbers of a list as ``0-3,8``; none of one that is not such a list."""
    found: list[int] = []
    try:
        for part in filter(None, text.split(",")):
            first, dash, last = part.partition("-")
            found += range(int(first), int(last if dash else first) + 1)
    except ValueError:
        return []
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
