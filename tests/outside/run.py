"""``make outside``: other servers' own tests against ``ferrum serve``, and the page of what counts and what passes.

Their files are never a part of this tree: a folder with their source distribution is given, and copies with other names of models
go to build/outside.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from tests.outside.lists import Project, Row, section, summary
from tests.outside.projects import PROJECTS

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "outside"
PAGE = ROOT / "docs" / "outside-tests.md"
PLUGINS = Path(__file__).parent / "plugins"
PACKAGES = ("pytest-asyncio", "regex")  # what their tests import beside the development environment
MINUTES = 40

HEAD = """# Other servers' tests

Made by `make outside LLAMA_CPP=FOLDER VLLM=FOLDER`, which takes the source distributions of llama-cpp-python and vllm, unpacked,
and runs their server tests against `ferrum serve`. The model (`tests/outside/plugins/outside_model.py`) says nothing of sense and
goes on until a limit, as theirs for tests. Changed in them are names of models, texts and token counts of a model, and forms in
which OpenAI's API, and so this server, is otherwise; each stands in `tests/outside/projects.py`.
"""


def prepare(project: Project, checkout: Path) -> Path:
    """Copies of their tests with the harness's names, in a folder of their own."""
    folder = BUILD / project.name
    shutil.rmtree(folder, ignore_errors=True)
    source = checkout / project.tests
    target = folder / project.within
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(*project.without))
    for parent in target.relative_to(folder).parents[:-1]:
        (folder / parent / "__init__.py").touch()
    for path in target.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for files, pattern, replacement in project.renames:
            if fnmatch.fnmatch(path.name, files):
                text = re.sub(pattern, replacement, text, flags=re.DOTALL)
        path.write_text(text, encoding="utf-8")
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n    slow\n    serial\n    asyncio\n")
    return folder


def environment(project: Project, folder: Path, checkout: Path) -> dict[str, str]:
    packages = BUILD / "packages"
    if not packages.exists():
        pip = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--disable-pip-version-check",
            "--no-deps",
            "--target",
            str(packages),
        ]
        subprocess.run([*pip, *PACKAGES], check=True)
    path = os.pathsep.join(map(str, (folder, PLUGINS, packages)))
    return {
        **os.environ,
        "PYTHONPATH": path,
        "OUTSIDE_PACKS": str(BUILD / "packs"),
        "OUTSIDE_TEMPLATES": str(checkout / "vendor" / "llama.cpp" / "models" / "templates"),
        "NO_PROXY": "127.0.0.1,localhost",
    }


def collect(project: Project, folder: Path, env: dict[str, str]) -> list[str]:
    """The names of their tests, in their order."""
    command = [*_pytest(project), "--collect-only", "-q", *project.files]
    done = subprocess.run(command, cwd=folder / project.within, env=env, capture_output=True, text=True)
    found = [line for line in done.stdout.splitlines() if "::" in line and not line.startswith(("ERROR", "FAILED"))]
    if not found or "rror" in done.stdout.splitlines()[-1]:
        raise SystemExit(done.stdout[-3000:] + done.stderr[-1000:])
    return found


def run(project: Project, folder: Path, env: dict[str, str], tests: Sequence[str]) -> dict[str, str]:
    """Outcome of each test by name."""
    report = folder / "report.xml"
    names = folder / "names.txt"
    names.write_text("\n".join(tests))
    command = [*_pytest(project), "-q", "--timeout=300", f"--junitxml={report}", "-o", "junit_family=xunit1", f"@{names}"]
    subprocess.run(command, cwd=folder / project.within, env=env, timeout=MINUTES * 60)
    outcomes = {}
    for case in ElementTree.parse(report).iter("testcase"):
        kinds = {child.tag for child in case}
        key = f"{case.get('file')}::{case.get('name')}"
        outcomes[key] = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
    return outcomes


def _pytest(project: Project) -> list[str]:
    # -P: vLLM's tests of the package openai lie in a folder of that name
    return [sys.executable, "-P", "-m", "pytest", "-p", project.plugin, "-p", "no:cacheprovider", "--rootdir=."]


def version_of(checkout: Path) -> str:
    """From the name of the folder, as source distributions have it."""
    return checkout.resolve().name.rpartition("-")[2]


def rows_of(project: Project, checkout: Path, only: str, *, again: bool) -> list[Row]:
    """``again``: tests that passed in the last run are not run."""
    folder = prepare(project, checkout)
    env = environment(project, folder, checkout)
    tests = collect(project, folder, env)
    kept = BUILD / f"{project.name}.json"
    before = json.loads(kept.read_text()) if again and kept.exists() else {}
    counted = [t for t in tests if not project.reason(t) and re.search(only, t) and before.get(t) != "passed"]
    outcomes = {**before, **(run(project, folder, env, counted) if counted else {})}
    kept.write_text(json.dumps(outcomes, indent=0))
    return [Row(t, project.reason(t), outcomes.get(t, "")) for t in tests]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("project", choices=PROJECTS)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--only", default="", help="a pattern of names; nothing is written")
    parser.add_argument("--again", action="store_true", help="only what did not pass in the last run, whose outcomes stay")
    args = parser.parse_args()
    project = PROJECTS[args.project]
    rows = rows_of(project, args.checkout, args.only, again=args.again)
    passed, counted = summary(rows)
    print(f"{project.name}: {passed} of {counted}")
    if not args.only:
        write(project, version_of(args.checkout), rows)
    return 0


def write(project: Project, version: str, rows: Sequence[Row]) -> None:
    """The project's part of the page; the others stay."""
    parts = re.split(r"(?m)^(?=## )", PAGE.read_text(encoding="utf-8")) if PAGE.exists() else [HEAD + "\n"]
    kept = {part.splitlines()[0][3:]: part for part in parts[1:]}
    kept[project.name] = "\n".join(section(project, version, rows)) + "\n"
    told = [HEAD, *(kept[p.name] for p in PROJECTS.values() if p.name in kept)]
    PAGE.write_text("\n".join(part.strip() + "\n" for part in told), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
