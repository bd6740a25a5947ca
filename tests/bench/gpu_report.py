"""What a measurement found: raw numbers, the table, what failed; written after every part, so that a stop loses nothing."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Report:
    """``raw``: numbers by name. ``table``: (what, value, share of a bound). ``failed``: a line for each part without a result.

    With a ``path`` every row is on disk as soon as it is known.
    """

    raw: dict[str, Any] = field(default_factory=dict)
    table: list[tuple[str, str, str]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    path: Path | None = None

    @property
    def read_gb_per_s(self) -> float:
        """What this GPU reads at most; 0 where that was not found."""
        found = self.raw.get("ceilings", {})
        return float(found.get("read_gb_per_s") or found.get("copy_gb_per_s") or 0.0)

    def row(self, what: str, value: str, share: str = "") -> None:
        self.table.append((what, value, share))
        self.save()

    def fail(self, line: str) -> None:
        self.failed.append(line)
        self.save()

    def take(self, part: Report) -> None:
        """Add what a part found."""
        self.raw |= part.raw
        self.table += part.table
        self.failed += part.failed
        self.save()

    def save(self) -> None:
        if self.path is not None:
            found = {key: value for key, value in asdict(self).items() if key != "path"}
            temporary = self.path.with_suffix(".part")
            temporary.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
            temporary.replace(self.path)

    def text(self) -> str:
        width = max((len(what) for what, _, _ in self.table), default=0)
        rows = [f"{what:<{width}}  {value:>18}  {share}".rstrip() for what, value, share in self.table]
        return "\n".join([*rows, *(f"failed  {line}" for line in self.failed)])


def predicted(model: str, quant: str, gpu: str, page: str) -> float:
    """Tokens/s that docs/targets.md expects of one sequence on a GPU with this name; 0 where it says nothing."""
    form = "bf16" if quant == "none" else quant
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] == f"{model} {form}" and cells[1] in gpu:
            return float(cells[-1].replace(",", ""))
    return 0.0


def load(path: Path) -> Report:
    """A report from disk; an empty one where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return Report()
    return Report(found["raw"], [tuple(row) for row in found["table"]], found["failed"])
