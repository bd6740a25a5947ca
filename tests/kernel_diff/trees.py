"""Renderings of trees: the working tree and any revision, each by its own compiler in processes of its own."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.kernel_diff.zoo import MODELS, Entry, write_model

ROOT = Path(__file__).resolve().parents[2]
_COLLECT = Path(__file__).with_name("collect.py")
JOBS = 2


def render_trees(trees: dict[Path, Path], entries: Iterable[Entry], models: Path) -> None:
    """Render ``entries`` with each tree into its folder (tree → folder), ``JOBS`` processes at a time.

    A process has some of the models, so that each is traced once a tree; ``models`` keeps folders and traces.
    """
    work: list[tuple[Path, Path, list[Entry]]] = []
    chosen = list(entries)
    names = sorted({e.model for e in chosen})
    for number, (tree, out) in enumerate(trees.items()):
        for part in (names[0::2], names[1::2]):
            for name in part:
                write_model(models / str(number) / name, MODELS[name])
            if part:
                work.append((tree, out, [e for e in chosen if e.model in part]))
    numbers = {tree: models / str(i) for i, tree in enumerate(trees)}
    with ThreadPoolExecutor(JOBS) as pool:
        list(pool.map(lambda job: render_tree(job[0], numbers[job[0]], job[1], job[2]), work))


def render_tree(tree: Path, models: Path, out: Path, entries: list[Entry]) -> None:
    """Render ``entries`` in one process; ``models`` has a folder for each model, and gets its trace."""
    plain = [{"name": e.name, "model": e.model, "target": e.target, "quant": e.quant, "kv": e.kv} for e in entries]
    command = [sys.executable, str(_COLLECT), str(tree), str(models), str(out)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    result = subprocess.run(command, input=json.dumps(plain), text=True, capture_output=True, cwd=tree, env=env, check=False)
    if result.returncode:
        raise RuntimeError(f"{tree} could not be rendered:\n{result.stderr[-2000:]}")


def check_out(revision: str, folder: Path) -> Path:
    """The files of ``revision`` in ``folder``. Raises LookupError when the repository does not have it."""
    result = subprocess.run(["git", "archive", revision, "--", "ferrum", "graphs", "codegen", "templates"],
                            cwd=ROOT, capture_output=True, check=False)  # fmt: skip
    if result.returncode:
        raise LookupError(f"this repository has no revision {revision}: {result.stderr.decode().strip()}")
    with tarfile.open(fileobj=io.BytesIO(result.stdout)) as archive:
        archive.extractall(folder, filter="tar")
    return folder


def commit_of(path: Path) -> str:
    """The commit that changed a file last; empty where there is none or no repository."""
    result = subprocess.run(["git", "log", "-1", "--format=%H", "--", str(path)], cwd=ROOT, capture_output=True, text=True,
                            check=False)  # fmt: skip
    return result.stdout.strip()
