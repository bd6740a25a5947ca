"""What came of a type, and the lines in which outcomes are kept: one for each type and tree, the last one counts."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

RUNS, DIFFERS, MISSING, UNTRIED, FAULT = "runs", "differs", "missing", "untried", "fault"
# What each result means, in the order in which the page has them.
MEANINGS = {
    RUNS: "compiled, proved, and equal to `transformers`",
    MISSING: "`ferrum check` says what is missing",
    UNTRIED: "no tiny model could be made or run in `transformers` itself",
    DIFFERS: "compiled, but not equal: a fault of ours",
    FAULT: "an exception, a crash or no end: a fault of ours",
}


@dataclass(frozen=True)
class Outcome:
    """``details``: findings, or what went wrong; of a type that runs, how far from `transformers` the logits were."""

    kind: str
    result: str
    details: tuple[str, ...] = ()
    version: str = ""
    tree: str = ""
    seconds: float = 0.0


def append(path: Path, outcome: Outcome) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(outcome)) + "\n")


def load(path: Path) -> list[Outcome]:
    """In order; a line that an interruption cut off is none."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            values = json.loads(line)
            found.append(Outcome(**values | {"details": tuple(values["details"])}))
        except (ValueError, TypeError, KeyError):
            continue
    return found


def latest(outcomes: Iterable[Outcome], version: str) -> dict[str, Outcome]:
    """The last outcome of each type under ``version`` of `transformers`."""
    return {outcome.kind: outcome for outcome in outcomes if outcome.version == version}
