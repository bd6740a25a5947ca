"""Machines as trees of files, like those of Linux."""

from __future__ import annotations

from pathlib import Path


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def nodes(cpus: list[str]) -> dict[str, str]:
    """The files of memory nodes, the CPUs of each given as a list like ``0-3,8-11``."""
    places = {f"devices/system/node/node{n}/cpulist": f"{text}\n" for n, text in enumerate(cpus)}
    every = f"0-{len(cpus) - 1}\n"
    return {**places, "devices/system/node/online": every, "devices/system/node/has_memory": every}
