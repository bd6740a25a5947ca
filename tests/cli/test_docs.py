"""The documents: commands of the tour run, links lead somewhere, files that are named exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
BLOCK = re.compile(r"```sh\n(.*?)```", re.DOTALL)
NAMED = re.compile(r"`((?:ferrum|graphs|codegen|templates|tests|docs)/[A-Za-z0-9_/.-]+)`")
LINK = re.compile(r"\]\((?!https?://)([^)#]+)\)")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_tour_runs(tmp_path: Path) -> None:
    """All commands of docs/architecture.md, one after the other in an empty folder."""
    script = "\n".join(BLOCK.findall((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")))
    assert script.count("ferrum ") > 10
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["bash", "-e", "-c", script]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_what_is_named_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    missing = [link for link in LINK.findall(text) if not (page.parent / link).exists()]
    missing += [name for name in NAMED.findall(text) if not (ROOT / name).exists()]
    assert missing == []


def test_every_dependency_is_explained() -> None:
    """Each package in pyproject.toml has a row."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    names = {re.split(r"[<>=;]", package)[0] for packages in lists for package in packages}
    page = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    assert [name for name in sorted(names) if not re.search(rf"(\| |, ){re.escape(name)}( \||,)", page)] == []


def test_every_dependency_is_pinned() -> None:
    import tomllib

    pins = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    names = {re.split(r"[<>=;]", package)[0].lower().replace("_", "-") for packages in lists for package in packages}
    assert names - pins <= {"setuptools"}
