"""What a machine lets a process use, from trees of files like those of Linux."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from ferrum.devices.host import cpu_quota, default_threads, machine_features
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
