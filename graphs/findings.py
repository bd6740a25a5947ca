"""What stands between a model and a pack, as a list: one entry per unsupported thing, all found at once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from ferrum.errors import FerrumError
from ferrum.graphs.ir import Graph

SHOWN = 4


@dataclass(frozen=True, slots=True)
class Finding:
    """``what`` is unsupported in ``module`` (qualified name) at ``source`` (``file.py:line``); ``nearest`` would be supported."""

    what: str
    module: str
    source: str
    nearest: str
    count: int = 1

    def __str__(self) -> str:
        times = f" ({self.count} times)" if self.count > 1 else ""
        place = " ".join(part for part in (self.module, self.source) if part)
        return f"{self.what}{times}" + (f" in {place}" if place else "") + (f", nearest: {self.nearest}" if self.nearest else "")


class UnsupportedOps(FerrumError):
    """A model that uses what ferrum does not know; ``findings`` has everything, the line quotes the first few.

    ``graph`` is what could be imported, if the frontend raised this: unsupported values are inputs of it.
    """

    def __init__(self, findings: Iterable[Finding], where: str, graph: Graph | None = None) -> None:
        self.findings = grouped(findings)
        self.place = where
        self.graph = graph
        shown = "; ".join(str(f) for f in self.findings[:SHOWN])
        more = f"; and {len(self.findings) - SHOWN} more" if len(self.findings) > SHOWN else ""
        super().__init__("unsupported-ops", shown + more, where, "`ferrum check` lists all of them")

    def __reduce__(self) -> tuple[type[UnsupportedOps], tuple[tuple[Finding, ...], str, Graph | None]]:  # type: ignore[override]
        return UnsupportedOps, (self.findings, self.place, self.graph)


def grouped(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """One finding per thing and source line: a fault in every layer is one entry that names the first layer and counts."""
    table: dict[tuple[str, str], Finding] = {}
    for finding in findings:
        key = (finding.what, finding.source)
        known = table.get(key)
        table[key] = finding if known is None else replace(known, count=known.count + finding.count)
    return tuple(table.values())
