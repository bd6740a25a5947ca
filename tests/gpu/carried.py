"""What was prepared elsewhere for a machine with a GPU and a Python of its own: where it lies, which packages it lacks.

Only the standard library is imported here: this runs before it is known what else there is.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

LIST, MODELS_FOLDER, CEILINGS_NAME, ANSWERS = "prepared.json", "models", "ceilings.cubin", "answers.{}.json"
QUESTIONS_NAME = "questions.json"
# All but the list and the wheels, which are compressed already: machine code and tables shrink to a fifth.
FILES, WHEELS = "files.zip", "wheels"
# Formats of the built-in model's packs; those of which the CPU's answers are brought along.
TINY, ANSWERED = ("none", "int4-g32", "int8", "fp8"), ("none", "int4-g32")
# Name of the distribution and of the module that shows whether it is there: for the measurement, and what the tests add.
BENCH = {"numpy": "numpy", "msgspec": "msgspec", "cuda-pathfinder": "cuda.pathfinder", "cuda-bindings": "cuda.bindings.driver"}
TESTS = {
    "pytest": "pytest", "pytest-timeout": "pytest_timeout", "iniconfig": "iniconfig", "pluggy": "pluggy",
    "packaging": "packaging", "pygments": "pygments",
}  # fmt: skip
PACKAGES = BENCH | TESTS


@dataclass(frozen=True)
class Carried:
    """``target`` and ``arch`` of the code; folders of ``models`` in the order of their worth; versions of ``packages``."""

    target: str
    arch: str
    models: list[str]
    packages: dict[str, str]


def read(folder: Path) -> Carried:
    """Raises SystemExit with one line where nothing was prepared. What was is unpacked, the first time."""
    try:
        found = Carried(**json.loads((folder / LIST).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise SystemExit(f"error: nothing was prepared in {folder}: python -m tests.bench.gpu --prepare {folder}") from None
    unpack(folder)
    return found


def pack(folder: Path) -> None:
    """Put what was prepared into one archive."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in (LIST, FILES)]
    files = [path for path in files if not path.relative_to(folder).parts[0].startswith((WHEELS, "site-"))]
    part = folder / f".{FILES}"
    with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in files:
            archive.write(path, path.relative_to(folder))
    for path in (*files, *sorted((p for p in folder.rglob("*") if p.is_dir()), reverse=True)):
        if path.is_file():
            path.unlink()
        elif not any(path.iterdir()):
            path.rmdir()
    part.rename(folder / FILES)


def unpack(folder: Path) -> None:
    """Take what was prepared out of its archive, which is then no more."""
    if (folder / FILES).exists():
        with zipfile.ZipFile(folder / FILES) as archive:
            archive.extractall(folder)
        (folder / FILES).unlink()


def is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that it is in
        return False


def add_wheels(folder: Path, packages: dict[str, str] = BENCH) -> list[str]:
    """Make wheels of ``folder`` importable in place of packages that are not there. Returns the names that still are not.

    A wheel is unpacked, once, beside the others; the interpreter's own packages go first.
    """
    lacking = {name: module for name, module in packages.items() if not is_there(module)}
    site = folder / f"site-{sys.implementation.cache_tag}"
    for wheel in sorted(folder.glob(f"{WHEELS}/*.whl")):
        name = wheel.name.split("-")[0].lower().replace("_", "-")
        mark = site / f"{wheel.name}.unpacked"
        if name in lacking and _fits(wheel.name) and not mark.exists():
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(site)
            mark.touch()
    if site.is_dir() and str(site) not in sys.path:
        sys.path.append(str(site))
        importlib.invalidate_caches()
    return [name for name, module in lacking.items() if not is_there(module)]


def _fits(wheel: str) -> bool:
    """Whether this interpreter loads what the wheel's name says it holds."""
    python, abi = wheel.removesuffix(".whl").split("-")[-3:-1]
    own = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    return own in python or "py3" in python or abi == "abi3"


def explain(missing: Iterable[str], carried: Carried, folder: Path) -> str:
    """One line about packages that are nowhere."""
    version = ".".join(map(str, sys.version_info[:2]))
    named = ", ".join(f"{name} {carried.packages.get(name, '')}".strip() for name in missing)
    how = f"python -m tests.bench.gpu --prepare {folder} --wheels {version} where there is a registry"
    return f"error: this Python {version} lacks {named}; bring them in {folder / WHEELS}: {how}"
