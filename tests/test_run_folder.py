"""The folder that the workers of a run share outlives whatever its tests start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_a_run_inside_a_run_leaves_its_folder(run_folder: Path) -> None:
    kept = run_folder / "kept"
    kept.touch()
    env = {**os.environ, "PYTEST_XDIST_TESTRUNUID": run_folder.name.removeprefix("ferrum-tests-")}
    options = ["-q", "--collect-only", "-p", "no:cacheprovider", "-p", "no:xdist"]
    command = [sys.executable, "-m", "pytest", *options, "tests/test_walls.py"]
    subprocess.run(command, cwd=Path(__file__).parents[1], env=env, check=True, capture_output=True, timeout=60)
    assert kept.exists()
