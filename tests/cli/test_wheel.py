"""A built wheel is complete: the linked folders are inside the package, with templates, headers and the built-in model."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_wheel(tmp_path: Path) -> None:
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.fpk")
    source.mkdir()
    for name in ("ferrum", "graphs", "codegen", "templates"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    build = "import setuptools.build_meta as b; print(b.build_wheel('.'))"
    done = subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr[-2000:]
    wheel = source / done.stdout.split()[-1]
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("graphs", "codegen", "templates"):
        files = _files(folder)
        assert len(files) > 5 and [f for f in files if f"ferrum/{f}" not in names] == []
    files = _files("ferrum")
    assert any(f.endswith("/cuda.h") for f in files) and [f for f in files if f not in names] == [], "emulation's headers too"
    assert {n.split("/")[0] for n in names if ".dist-info/" not in n} == {"ferrum"}
    assert any(n.endswith("ferrum/graphs/tiny/model/config.json") for n in names)
    assert any(n.startswith("ferrum_infer-") and n.endswith("licenses/LICENSE") for n in names)
    assert not any("__pycache__" in n for n in names)


def _files(folder: str) -> list[str]:
    return [p.relative_to(ROOT).as_posix() for p in (ROOT / folder).rglob("*") if p.is_file() and _belongs(p)]


def _belongs(path: Path) -> bool:
    return "__pycache__" not in path.parts and path.suffix in (".py", ".j2", ".h", ".json", ".safetensors", ".jinja")
