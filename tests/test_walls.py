"""The runtime runs without the compiler: importing the server loads neither torch nor onnx nor the compiler."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = ("torch", "onnx", "transformers", "safetensors", "ferrum.graphs", "ferrum.codegen")
MODULES = ["ferrum.server.app", "ferrum.engine.process", "ferrum.llm", "ferrum.pack.reader", "ferrum.cli.main", "ferrum.hub"]


def loaded_by(code: str, tmp_path: Path) -> set[str]:
    """Names of the modules that a fresh Python has loaded after running ``code`` outside the repository."""
    program = f"{code}\nimport sys\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("module", MODULES)
def test_the_runtime_does_not_load_the_compiler(module: str, tmp_path: Path) -> None:
    loaded = loaded_by(f"import {module}", tmp_path)
    assert module in loaded
    assert not loaded.intersection(FORBIDDEN)


def test_the_verbs_load_nothing_heavy(tmp_path: Path) -> None:
    """``ferrum --help`` builds every parser and must stay quick."""
    loaded = loaded_by("from ferrum.cli.main import build_parser; build_parser()", tmp_path)
    assert not loaded.intersection((*FORBIDDEN, "numpy", "sanic", "huggingface_hub", "rich.progress"))


def test_stages_are_told_without_the_compilers_packages(tmp_path: Path) -> None:
    """``ferrum explain STAGE`` works where only the runtime is installed."""
    loaded = loaded_by("from ferrum.cli.explain import stage_texts; assert stage_texts()", tmp_path)
    assert not loaded.intersection(("torch", "onnx", "transformers", "safetensors", "ml_dtypes"))


def test_the_server_loads_no_arrays(tmp_path: Path) -> None:
    """What only the engine's process needs stays there; both start at the same time, on cores that they share."""
    loaded = loaded_by("import ferrum.server.lifecycle", tmp_path)
    assert "sanic" in loaded
    assert not loaded.intersection(("numpy", "ferrum.devices.base", "ferrum.engine.engine", "huggingface_hub", "rich", "tomllib"))


def test_the_engine_is_started_before_anything_heavy_is_loaded(tmp_path: Path) -> None:
    """All that ``serve`` has imported when it spawns the engine's process."""
    loaded = loaded_by("import ferrum.cli.main, ferrum.cli.serve, ferrum.hub, ferrum.store, ferrum.server.start", tmp_path)
    assert "ferrum.engine.spawn" in loaded
    heavy = ("asyncio", "jinja2", "msgspec", "numpy", "sanic", "tokenizers", "tomllib", "huggingface_hub", "rich")
    assert not loaded.intersection((*FORBIDDEN, *heavy))


def test_bare_names_do_not_resolve(tmp_path: Path) -> None:
    """The top-level folders are not top-level packages, whatever is installed."""
    program = "import graphs"
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.returncode != 0 and "No module named 'graphs'" in done.stderr


def test_environment_is_read_in_one_file() -> None:
    pattern = re.compile(r"""environ[^\n]*FERRUM_|getenv\([^\n]*FERRUM_""")
    readers = [p for p in (ROOT / "ferrum").rglob("*.py") if p.name != "env.py" and pattern.search(p.read_text(encoding="utf-8"))]
    readers += [p for d in ("graphs", "codegen") for p in (ROOT / d).rglob("*.py") if "FERRUM_" in _environment_reads(p)]
    assert readers == []


def _environment_reads(path: Path) -> str:
    return "\n".join(line for line in path.read_text(encoding="utf-8").splitlines() if "environ" in line or "getenv" in line)


def test_at_most_ten_variables() -> None:
    from ferrum.env import VARIABLES

    assert len(VARIABLES) <= 10 and all(v.name.startswith("FERRUM_") and v.flag.startswith("-") for v in VARIABLES)


def test_no_pickle() -> None:
    """Neither the module nor the torch functions that use it."""
    pattern = re.compile(r"^\s*(import|from) (pickle|shelve|marshal|dill|cloudpickle)\b|torch\.(save|load)\(", re.MULTILINE)
    folders = ("ferrum", "graphs", "codegen")
    bad = [str(p) for d in folders for p in (ROOT / d).rglob("*.py") if pattern.search(p.read_text(encoding="utf-8"))]
    assert bad == []
