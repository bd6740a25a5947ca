"""The templates' kernels under AddressSanitizer: every access of shared and local arrays, too."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from ferrum.devices.emulate.compiler import find_cxx
from tests.emulate.test_faults import KERNELS

ROOT = Path(__file__).parents[2]


@cache
def library() -> str:
    """The shared library that a sanitized kernel needs; empty when the compiler has none."""
    compiler = find_cxx(False)
    names = {"gcc": "libasan.so", "clang": "libclang_rt.asan-x86_64.so"}
    if compiler.kind not in names:
        return ""
    command = [*compiler.command, f"-print-file-name={names[compiler.kind]}"]
    found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return found if Path(found).is_absolute() and Path(found).exists() else ""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    if not library():
        pytest.skip("the compiler has no AddressSanitizer")
    environment = os.environ | {"LD_PRELOAD": library(), "ASAN_OPTIONS": "detect_leaks=0", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.emulate.sanitized", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False)


@pytest.mark.slow
@pytest.mark.timeout(700)
def test_a_read_past_a_shared_array_is_found() -> None:
    assert "nothing found" in run("overrun", "0").stdout
    found = run("overrun", "1")
    assert found.returncode != 0 and "global-buffer-overflow" in found.stderr and "kernels:7" in found.stderr


@pytest.mark.slow
@pytest.mark.timeout(700)
@pytest.mark.parametrize("name", KERNELS)
def test_the_templates_stay_inside_their_arrays(name: str) -> None:
    found = run(name)
    assert found.returncode == 0 and "nothing found" in found.stdout, found.stderr[-4000:]
