"""A page of docs/ done on a copy of the tree: its blocks are files, changes of files and commands, in their order.

What a block is stands behind its three backticks: ``sh`` runs in the copy's root; a language and a path is a new file; ``diff``
and a path changes one, whose lines of context must be there once. Blocks with neither are only read.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(r"^```(\w+)(?: ([^\n ]+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    language: str
    path: str
    text: str


def blocks(page: str) -> list[Block]:
    return [Block(*(part or "" for part in found)) for found in _BLOCK.findall(page)]


def copy_tree(folder: Path) -> Path:
    """The files that git has or would take, links as links."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in filter(None, subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")):
        source, target = ROOT / name, folder / name
        if source.is_symlink() or source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)
    return folder


def changed(text: str, diff: str) -> str:
    """``text`` after ``diff``: lines that begin with a space are context, with - go, with + come."""
    lines = diff.splitlines()
    before = "".join(f"{line[1:]}\n" for line in lines if line[:1] != "+")
    after = "".join(f"{line[1:]}\n" for line in lines if line[:1] != "-")
    assert f"\n{text}".count(f"\n{before}") == 1, f"not there once:\n{before}"
    return f"\n{text}".replace(f"\n{before}", f"\n{after}")[1:]


def run(script: str, tree: Path, timeout: float) -> str:
    """The output of commands in the copy, whose modules are imported there."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "PYTHONPATH": str(tree), "FERRUM_HOME": str(tree / "home")}
    done = subprocess.run(["bash", "-e", "-c", script], cwd=tree, env=env, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def walk(page: Path, folder: Path, timeout: float) -> Iterator[tuple[Block, str]]:
    """Do the page in ``folder``; each block with what it printed, or with the path that it made or changed."""
    tree = copy_tree(folder)
    found = run("python -c 'import ferrum, ferrum.codegen; print(ferrum.__file__)'", tree, timeout)
    assert Path(found.strip()).is_relative_to(tree)
    for block in blocks(page.read_text(encoding="utf-8")):
        path = tree / block.path
        if block.language == "sh":
            yield block, run(block.text, tree, timeout)
        elif block.language == "diff" and block.path:
            path.write_text(changed(path.read_text(encoding="utf-8"), block.text), encoding="utf-8")
            yield block, block.path
        elif block.path:
            assert not path.exists(), f"{block.path} is there already"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
            yield block, block.path
