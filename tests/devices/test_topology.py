"""Which cores get threads and which nodes hold weights, on machines that are trees of files; the policy of this one's memory."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest

from ferrum.cli import doctor
from ferrum.devices import prefault, topology
from ferrum.devices.topology import MPOL_DEFAULT, MPOL_INTERLEAVE, memory_nodes, policy, spread_over, usable_cpus
from tests.devices.machines import nodes, write

SIBLINGS = "devices/system/cpu/cpu{}/topology/thread_siblings_list"


def may_use(monkeypatch: pytest.MonkeyPatch, cpus: set[int]) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: cpus)


def test_a_core_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """192 logical CPUs of two sockets, as a server numbers them: the second threads of all cores come last."""
    root = write(tmp_path, {SIBLINGS.format(cpu): f"{cpu % 96},{cpu % 96 + 96}\n" for cpu in range(192)})
    may_use(monkeypatch, set(range(192)))
    assert usable_cpus(root) == list(range(96))
    may_use(monkeypatch, {*range(90, 100), 190})  # 94 and 190 are one core
    assert usable_cpus(root) == list(range(90, 100))


def test_cores_of_a_node_are_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two nodes whose CPUs alternate, as some firmware numbers them."""
    root = write(tmp_path, nodes(["0,2,4,6", "1,3,5,7"]))
    may_use(monkeypatch, set(range(8)))
    assert usable_cpus(root) == [0, 2, 4, 6, 1, 3, 5, 7]


def test_the_fast_cores_of_a_hybrid_processor_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A core of two threads, small cores before and after it; the other of two large ones is not ours."""
    pairs = {SIBLINGS.format(cpu): text for cpu, text in {0: "0", 1: "1", 2: "2-3", 3: "2-3", 6: "6", 7: "7"}.items()}
    root = write(tmp_path, {**pairs, "devices/cpu_core/cpus": "2-5\n", "devices/cpu_atom/cpus": "0-1,6-7\n"})
    may_use(monkeypatch, {0, 1, 2, 3, 6, 7})
    assert usable_cpus(root) == [2, 0, 1, 6, 7]
    write(root, {"devices/cpu_atom/cpus": "1,6-7\n", "devices/cpu_lowpower/cpus": "0\n"})
    assert usable_cpus(root) == [2, 1, 6, 7, 0]


def test_the_large_cores_of_an_arm_processor_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    capacity = {0: 379, 1: 379, 2: 867, 3: 1024}
    root = write(tmp_path, {f"devices/system/cpu/cpu{cpu}/cpu_capacity": f"{c}\n" for cpu, c in capacity.items()})
    may_use(monkeypatch, set(capacity))
    assert usable_cpus(root) == [3, 2, 0, 1]


def test_nodes_are_those_that_this_process_may_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write(tmp_path, nodes(["0-31", "32-63", "64-95", ""]))
    may_use(monkeypatch, set(range(96)))
    assert memory_nodes(root) == [0, 1, 2]  # the fourth has memory alone, as an expander on a bus
    may_use(monkeypatch, set(range(40, 50)))
    assert memory_nodes(root) == [1]
    write(root, {"devices/system/node/has_memory": "0,2\n"})
    may_use(monkeypatch, set(range(96)))
    assert memory_nodes(root) == [0, 2]


@pytest.mark.parametrize("text", ["", "what", "0-", "-1", "0,x"])
def test_files_that_say_nothing_are_as_good_as_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    node, cpu = "devices/system/node", "devices/system/cpu"
    files = (f"{node}/online", f"{node}/has_memory", f"{node}/node0/cpulist", f"{cpu}/cpu1/cpu_capacity", "devices/cpu_atom/cpus")
    root = write(tmp_path, dict.fromkeys(files, text))
    may_use(monkeypatch, {0, 1})
    assert memory_nodes(root) == [] and usable_cpus(root) == [0, 1]


def test_doctor_says_over_how_many_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    def said() -> str:
        return next(found.detail for found in doctor.machine() if found.what == "machine")

    monkeypatch.setattr(topology, "memory_nodes", lambda: [0])
    assert "nodes" not in said()
    monkeypatch.setattr(topology, "memory_nodes", lambda: [0, 1])
    for found, spread in ((MPOL_DEFAULT, sys.platform == "linux"), (MPOL_INTERLEAVE, False), (-1, False)):
        monkeypatch.setattr(topology, "policy", lambda found=found: found)
        assert said().endswith("weights are spread over 2 memory nodes") == spread


def in_a_thread(work: object) -> list[object]:
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(work()))  # type: ignore[operator]
    thread.start()
    thread.join()
    return found


@pytest.mark.skipif(policy() < 0, reason="needs Linux with memory policies on x86-64 or arm64")
def test_one_thread_spreads_its_memory_and_others_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    here = memory_nodes()[:1] or [0]
    before = policy()
    assert in_a_thread(lambda: (spread_over(here), policy())) == [(False, before)]  # one node: there is nothing to spread over

    # the system leaves out nodes that a machine has not, so a second one may be named on any
    assert in_a_thread(lambda: (spread_over([*here, here[0]]), policy())) == [(True, MPOL_INTERLEAVE)]
    assert policy() == before == MPOL_DEFAULT

    def twice() -> tuple[bool, bool]:
        return spread_over([*here, here[0]]), spread_over([*here, here[0]])

    assert in_a_thread(twice) == [(True, False)]  # a policy that is set stays


def test_weights_are_mapped_by_a_thread_that_spreads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    monkeypatch.setattr(prefault, "memory_nodes", lambda: [0, 1])
    monkeypatch.setattr(prefault, "spread_over", lambda found: seen.append((found, threading.current_thread().name)))
    one = prefault.Prefault(1 << 20, 1 << 20)
    one._thread.join(60)
    one.close()
    assert seen == ([([0, 1], "prefault")] if topology.sys.platform == "linux" else [])
