"""The tests' own kernels, compiled once a process (and then found in the cache)."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from ferrum.devices.emulate import Module, build

FOLDER = Path(__file__).parent / "kernels"


def text(name: str) -> str:
    return (FOLDER / name).read_text()


@cache
def module(name: str, old: str = "", new: str = "") -> Module:
    """A source of the folder, with one piece of its text replaced; the piece must be there."""
    source = text(name)
    assert old in source, f"{name} has no {old!r}"
    return build(source.replace(old, new, 1) if old else source, "metal" if name.endswith(".metal") else "cuda")
