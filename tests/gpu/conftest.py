"""Tests on a real GPU: skipped, with the reason, where there is none.

``--prepared DIR`` takes packs that ``python -m tests.bench.gpu --prepare DIR`` made elsewhere, and packages that are missing.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.gpu import carried
from tests.once import once

if TYPE_CHECKING:
    from tests.gpu.shapes import Shape

Compile = Callable[..., Path]
Shapes = Callable[[str], "Shape"]
Questions = Callable[[int], list[list[int]]]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--prepared", default="", metavar="DIR", help="packs for this GPU that were compiled elsewhere")


def pytest_configure(config: pytest.Config) -> None:
    if text := config.getoption("--prepared", ""):
        prepared = carried.read(Path(text))
        if missing := carried.add_wheels(Path(text), carried.PACKAGES):
            pytest.exit(carried.explain(missing, prepared, Path(text)), returncode=1)


@pytest.fixture(scope="session")
def prepared(request: pytest.FixtureRequest) -> Path | None:
    """The folder of what was compiled elsewhere."""
    text = request.config.getoption("--prepared", "")
    return Path(text) if text else None


@pytest.fixture(scope="session")
def gpu(prepared: Path | None) -> str:
    """The device of this machine: "cuda" or "metal". Who prepared packs meant to have one: without it the run ends."""
    from ferrum.devices.gpus import probe

    found = {device: probe(device) for device in ("cuda", "metal")}
    for device, what in found.items():
        if what.gpus and not what.missing:
            return device
    if prepared is not None:
        pytest.exit(f"error: no GPU here: {found['cuda'].missing}", returncode=1)
    pytest.skip("; ".join(f"{device}: {what.missing}" for device, what in found.items()))


@pytest.fixture(scope="session")
def compiled(run_folder: Path, prepared: Path | None) -> Compile:
    """The built-in model for a target in a number format, made once per run."""

    def make(target: str, quant: str = "none") -> Path:
        if prepared is not None:
            path = prepared / f"tiny.gpu.{quant}.fpk"
            if not path.exists():
                pytest.skip(f"{path.name} was not prepared")
            return path
        command = [sys.executable, "-m", "ferrum", "compile", "tiny", "--target", target, "--quant", quant, "-o"]
        path = run_folder / f"tiny.{target}.{quant}.fpk"
        return once(path, lambda part: subprocess.run([*command, str(part)], check=True, timeout=300))

    return make


@pytest.fixture(scope="session")
def questions(prepared: Path | None) -> Questions:
    """The prompts of so many questions."""
    if prepared is None:
        from tests.gpu.answers import asked

        return asked
    kept = json.loads((prepared / carried.QUESTIONS_NAME).read_text(encoding="utf-8"))
    return lambda count: kept[str(count)]


@pytest.fixture
def shapes(gpu: str, prepared: Path | None, tmp_path: Path) -> Shapes:
    """A model of an odd shape by name."""
    from tests.gpu.shapes import find, make

    def get(name: str) -> Shape:
        if prepared is None:
            return make(tmp_path, name, gpu)
        try:
            return find(prepared / "shapes", name)
        except FileNotFoundError:
            pytest.skip(f"shapes/{name} was not prepared")

    return get
