"""What a machine lets a process use, from trees of files like those of Linux."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from ferrum.devices.host import cpu_quota, default_threads, machine_features, tiles_note, tiles_refused
from tests.devices.machines import write


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, math.inf),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, math.inf),
        # a container: it sees its own group as the root
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "250000 100000\n"}, 2.5),
        # a service: the least of its own and of the groups around it
        (
            {
                "proc/self/cgroup": "0::/system.slice/ferrum.service\n",
                "sys/fs/cgroup/system.slice/cpu.max": "300000 100000\n",
                "sys/fs/cgroup/system.slice/ferrum.service/cpu.max": "800000 100000\n",
            },
            3.0,
        ),
        # version 1, which has a file for each number and -1 for no limit
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "400000\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
        ({"proc/self/cgroup": "0::/../elsewhere\n", "sys/fs/cgroup/cpu.max": "what\n"}, math.inf),
    ],
)
def test_a_limit_on_cores_is_found(tmp_path: Path, files: dict[str, str], quota: float) -> None:
    root = write(tmp_path, files)
    assert cpu_quota(root / "proc", root / "sys") == quota


@pytest.mark.parametrize(
    ("cores", "quota", "threads"), [(64, math.inf, 64), (64, 2.5, 2), (2, 8.0, 2), (8, 0.5, 1), (1, math.inf, 1)]
)
def test_threads_are_those_that_run_at_once(cores: int, quota: float, threads: int) -> None:
    assert default_threads(cores, quota) == threads


def test_features_name_the_maker(tmp_path: Path) -> None:
    root = write(tmp_path, {"cpuinfo": "vendor_id\t: GenuineIntel\nflags\t\t: fma avx2\n\nflags\t: other\n"})
    assert machine_features(root) == {"fma", "avx2", "GenuineIntel"}
    assert machine_features(tmp_path / "none") == frozenset()


def test_tiles_are_a_feature_where_the_system_gives_them(tmp_path: Path) -> None:
    """A process must ask; without the permission the first tile instruction would end it."""
    root = write(tmp_path, {"cpuinfo": "vendor_id\t: GenuineIntel\nflags\t\t: fma avx2 amx_bf16 avx512_bf16 amx_tile amx_int8\n"})
    tiles = {"amx_bf16", "amx_tile", "amx_int8"}
    rest = {"fma", "avx2", "avx512_bf16", "GenuineIntel"}
    assert machine_features(root, lambda: "") == tiles | rest and tiles_note(root, lambda: "") == ""
    assert machine_features(root, lambda: "Operation not permitted") == rest
    assert tiles_note(root, lambda: "Operation not permitted").endswith("the system refuses them: Operation not permitted")


def test_a_cpu_without_tiles_asks_for_none(tmp_path: Path) -> None:
    def asked() -> str:
        raise AssertionError

    root = write(tmp_path, {"cpuinfo": "vendor_id\t: GenuineIntel\nflags\t\t: fma avx2\n"})
    assert machine_features(root, asked) == {"fma", "avx2", "GenuineIntel"} and tiles_note(root, asked) == ""


def test_the_system_answers_for_this_cpu() -> None:
    """Where there are no tiles the request is refused; where there are, features follow the answer."""
    listed = any(flag.startswith("amx_") for flag in Path("/proc/cpuinfo").read_text().split())
    assert listed or tiles_refused()
    assert any(flag.startswith("amx_") for flag in machine_features()) == (listed and not tiles_refused())
