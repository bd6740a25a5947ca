"""Which tests of another server apply here: of every test that is collected, either it counts, or a reason says why not."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

Rule = tuple[str, str]  # a pattern of test names, and why these do not count


@dataclass(frozen=True)
class Project:
    """Another server whose tests are run.

    ``tests``: the folder of its checkout that holds them. ``within``: where they are put in a copy, so that they import each
    other. ``without``: patterns of files that the harness stands in for. ``files``: those that are looked at; what is not among
    them is about other things, which ``others`` says. ``renames``: (files, pattern, replacement) of what a harness may change:
    names of models and paths, texts and token counts of a model, and the forms in which this project's contract decides
    otherwise.
    """

    name: str
    package: str
    plugin: str
    tests: str
    files: tuple[str, ...]
    others: str
    excluded: tuple[Rule, ...]
    renames: tuple[tuple[str, str, str], ...] = ()
    within: str = "."
    without: tuple[str, ...] = ()

    def reason(self, test: str) -> str:
        """Why ``test`` does not count; empty when it does."""
        return next((why for pattern, why in self.excluded if re.search(pattern, test)), "")


@dataclass(frozen=True)
class Row:
    """``outcome``: passed, failed, or empty when it was not run."""

    test: str
    reason: str = ""
    outcome: str = ""


def summary(rows: Sequence[Row]) -> tuple[int, int]:
    """Tests that passed, and those that count."""
    counted = [row for row in rows if not row.reason]
    return sum(row.outcome == "passed" for row in counted), len(counted)


def section(project: Project, version: str, rows: Sequence[Row]) -> list[str]:
    """A project's part of the page."""
    passed, counted = summary(rows)
    lines = [f"## {project.name}", "", f"{project.package} {version}: {passed} of {counted} pass. {project.others}", ""]
    failed = [row.test for row in rows if not row.reason and row.outcome != "passed"]
    if failed:
        lines += ["Failed:", "", *(f"- `{name}`" for name in failed), ""]
    lines += ["Counted:", "", *_grouped([row.test for row in rows if not row.reason]), ""]
    lines += ["Not counted:", "", "| why | tests |", "|---|---|"]
    for why in dict.fromkeys(row.reason for row in rows if row.reason):
        names = [_without_case(row.test) for row in rows if row.reason == why]
        told = ", ".join(f"`{n.rpartition('::')[2]}`" + _times(names.count(n)) for n in dict.fromkeys(names))
        lines.append(f"| {why} | {told} |")
    return [*lines, ""]


def _grouped(tests: Sequence[str]) -> list[str]:
    """One line a file: its tests, with the number of their cases."""
    files: dict[str, list[str]] = {}
    for test in tests:
        file, _, name = test.partition("::")
        files.setdefault(file, []).append(_without_case(name))
    return [
        f"- {file}: " + ", ".join(f"`{n.removeprefix('test_')}`" + _times(names.count(n)) for n in dict.fromkeys(names))
        for file, names in files.items()
    ]


def _without_case(test: str) -> str:
    return test.partition("[")[0]


def _times(count: int) -> str:
    return f" ×{count}" if count > 1 else ""
