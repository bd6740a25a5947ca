"""The stored rendering: digests of the zoo, as the commit that holds ``base.json`` renders it."""

from __future__ import annotations

import json
from pathlib import Path

from tests.kernel_diff.renderings import Rendering, Summary
from tests.kernel_diff.zoo import Entry

BASE = Path(__file__).with_name("base.json")


def store(renderings: dict[Entry, Rendering], path: Path = BASE) -> None:
    """Write the digests of ``renderings``; equal inputs give equal bytes. Raises ValueError if one could not be rendered."""
    failed = [f"{entry.name}: {rendering.error}" for entry, rendering in renderings.items() if rendering.error]
    if failed:
        raise ValueError("; ".join(failed))
    rows = [f"{json.dumps(entry.name)}: {json.dumps(rendering.summary.plain())}" for entry, rendering in renderings.items()]
    path.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")


def stored(path: Path = BASE) -> dict[str, Summary]:
    """Summaries by the names of entries."""
    return {name: Summary.of(plain) for name, plain in json.loads(path.read_text(encoding="utf-8")).items()}
