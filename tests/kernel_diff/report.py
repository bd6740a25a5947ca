"""Differences as lines for people, and the table of changes that were meant: ``docs/kernel-changes.md``."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.kernel_diff.compare import Difference

CHANGES = Path(__file__).resolve().parents[2] / "docs" / "kernel-changes.md"
_FORMER = "\n## What was meant before\n"
_TITLES = {
    "error": "one of the trees does not render",
    "code": "machine code differs",
    "text": "source differs, no code to compare",
    "added": "kernels that are new",
    "removed": "kernels that are gone",
    "plan": "launches or slots differ",
    "source": "source differs, code equal",
}


@dataclass(frozen=True)
class Change:
    """A row of the table: which kernels (``plan`` for the launch table) of which targets, as patterns, and why they changed."""

    kernels: str
    targets: str
    reason: str

    def names(self, difference: Difference) -> bool:
        what = difference.kernel or difference.kind
        return fnmatch.fnmatchcase(what, self.kernels) and fnmatch.fnmatchcase(difference.entry.target, self.targets)


def read_changes(path: Path = CHANGES, earlier: bool = False) -> list[Change]:
    """The rows ``| `kernels` | `targets` | reason |`` of the table; with ``earlier`` those of former tables as well."""
    text = path.read_text(encoding="utf-8")
    if not earlier:
        text = text.split(_FORMER)[0]
    rows = re.findall(r"^\| `([^`|]+)` \| `([^`|]+)` \| ([^|\n]+) \|$", text, re.M)
    return [Change(kernels, targets, reason.strip()) for kernels, targets, reason in rows]


def surprises(differences: list[Difference], changes: list[Change]) -> list[Difference]:
    """What changes the code and is not named in the table."""
    return [d for d in differences if d.kind != "source" and not any(c.names(d) for c in changes)]


def lines(differences: list[Difference], changes: list[Change], count: int, details: bool = False) -> Iterator[str]:
    """One entry for each kernel, kind and first line that differs; equal ones are counted. ``details`` names every rendering."""
    unnamed = surprises(differences, changes)
    for kind, title in _TITLES.items():
        groups: dict[tuple[str, str, str, str], list[Difference]] = {}
        for d in differences:
            if d.kind == kind:
                groups.setdefault((d.kernel, d.entry.target.split("-")[0], d.base, d.new), []).append(d)
        if groups:
            yield f"{title}:"
        for (kernel, device, old, now), found in groups.items():
            more = f" and {len(found) - 1} more" if len(found) > 1 and not details else ""
            places = ", ".join(d.entry.name for d in (found if details else found[:1]))
            yield f"  {kernel or kind} ({device}): {places}{more}" + (f" · {found[0].why}" if found[0].why else "")
            yield from (f"      {mark} {text}" for mark, text in (("-", old), ("+", now)) if text)
            for change in changes if kind != "source" else ():
                if change.names(found[0]):
                    yield f"      named: {change.reason}"
                    break
    if not differences:
        yield f"no difference in {count} renderings"
        return
    named = sum(d.kind != "source" for d in differences) - len(unnamed)
    equal = sum(d.kind == "source" for d in differences)
    meant = f"{named} more named in docs/kernel-changes.md"
    yield f"{count} renderings: {len(unnamed)} differences, {meant}, {equal} in the source only"
