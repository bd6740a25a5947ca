"""Tests on a real GPU: skipped, with the reason, where there is none."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ferrum.devices.gpus import probe

Compile = Callable[..., Path]


@pytest.fixture(scope="session")
def gpu() -> str:
    """The device of this machine: "cuda" or "metal"."""
    found = {device: probe(device) for device in ("cuda", "metal")}
    for device, what in found.items():
        if what.gpus and not what.missing:
            return device
    pytest.skip("; ".join(f"{device}: {what.missing}" for device, what in found.items()))


@pytest.fixture(scope="session")
def compiled(run_folder: Path) -> Compile:
    """The built-in model for a target in a number format, made once per run."""

    def make(target: str, quant: str = "none") -> Path:
        path = run_folder / f"tiny.{target}.{quant}.fpk"
        with (run_folder / f"tiny.{target}.{quant}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                command = [
                    sys.executable,
                    "-m",
                    "ferrum",
                    "compile",
                    "tiny",
                    "--target",
                    target,
                    "--quant",
                    quant,
                    "-o",
                    str(path),
                ]
                subprocess.run(command, check=True, timeout=300)
        return path

    return make
