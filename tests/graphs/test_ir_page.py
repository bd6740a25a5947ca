"""docs/ir.md: its table of operations is the one of ``graphs/ops.py``, its kinds of states are those that there are."""

from __future__ import annotations

import re
from pathlib import Path

from ferrum.graphs.ir import STATE_KINDS
from ferrum.graphs.ops import OPS

PAGE = (Path(__file__).parents[2] / "docs" / "ir.md").read_text(encoding="utf-8")


def rows(section: str) -> list[list[str]]:
    text = PAGE.split(f"\n## {section}\n")[1].split("\n## ")[0]
    lines = [line for line in text.splitlines() if re.match(r"\| *\*{0,2}`", line)]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_operations() -> None:
    found = {}
    for names, _, attributes, _ in rows("Operations"):
        for name in re.findall(r"`(\w+)`", names):
            assert name not in found, name
            found[name] = (set(filter(None, attributes.split(", "))), names.startswith("**"))
    assert found == {name: (set(spec.attrs), spec.paged) for name, spec in OPS.items()}


def test_states() -> None:
    assert tuple(re.findall(r"`(\w+)", names)[0] for names, *_ in rows("States")) == STATE_KINDS
