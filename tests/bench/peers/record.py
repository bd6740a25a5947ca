"""Rows of results: samples of each participant, their medians and spread, and the raw file that keeps them."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

Visit = Callable[[], Mapping[str, float | list[float]]]


@dataclass
class Row:
    """One line of the table. ``samples``: participant to values. ``facts``: what the goals ask for beside ratios."""

    shape: str
    line: str
    format: str
    unit: str
    samples: dict[str, list[float]]
    facts: dict[str, float] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, str]:
        return self.shape, self.line, self.format

    def median(self, name: str) -> float | None:
        values = self.samples.get(name)
        return statistics.median(values) if values else None

    def spread(self, name: str) -> float:
        """Half the range over the median."""
        values = self.samples[name]
        middle = statistics.median(values)
        return (max(values) - min(values)) / 2 / middle if middle else 0.0

    def ratio(self, peer: str, ours: str = "ferrum") -> float | None:
        a, b = self.median(ours), self.median(peer)
        return a / b if a is not None and b else None


class Failure(Exception):
    """A participant that could not do a case; the run goes on without it."""


def alternate(visits: Mapping[str, Visit], rounds: int) -> tuple[dict[str, dict[str, list[float]]], dict[str, str]]:
    """Visit each participant in turn, ``rounds`` times: A B A B.

    Returns (line -> participant -> samples, participant -> why it is missing).
    """
    found: dict[str, dict[str, list[float]]] = {}
    failed: dict[str, str] = {}
    for _ in range(rounds):
        for name, visit in visits.items():
            if name in failed:
                continue
            began = time.monotonic()
            try:
                values = visit()
            except Failure as error:
                failed[name] = str(error)
                print(f"  {name} failed: {error}", flush=True)
                continue
            print(f"  {name}: {time.monotonic() - began:.0f} s", flush=True)
            for line, value in values.items():
                samples = found.setdefault(line, {}).setdefault(name, [])
                samples += value if isinstance(value, list) else [value]
    return found, failed


@dataclass
class Record:
    """Everything of one machine and day."""

    machine: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    sizes: list[dict[str, Any]] = field(default_factory=list)
    roofs: dict[str, list[float]] = field(default_factory=dict)
    commands: list[str] = field(default_factory=list)

    def add(self, row: Row) -> None:
        """In the place of an earlier row of the same line."""
        keys = [r.key for r in self.rows]
        if row.key in keys:
            self.rows[keys.index(row.key)] = row
        else:
            self.rows.append(row)

    def add_size(self, size: dict[str, Any]) -> None:
        keys = ("shape", "format")
        self.sizes = [s for s in self.sizes if any(s[k] != size[k] for k in keys)] + [size]

    def add_roofs(self, roofs: Mapping[str, float]) -> None:
        for key, value in roofs.items():
            self.roofs.setdefault(key, []).append(value)

    def roof(self, key: str) -> float | None:
        return statistics.median(self.roofs[key]) if self.roofs.get(key) else None

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, path: Path) -> Record:
        data: dict[str, Any] = json.loads(path.read_text())
        return cls(**data | {"rows": [Row(**row) for row in data["rows"]]})
