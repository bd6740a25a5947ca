"""docs/checkpoints.md: its tables are made of the records."""

from __future__ import annotations

from pathlib import Path

from ferrum.graphs.gguf.reference import filled

PAGE = Path(__file__).parents[2] / "docs" / "checkpoints.md"


def test_the_tables_are_current() -> None:
    """`make docs` makes them."""
    page = PAGE.read_text(encoding="utf-8")
    assert page.count("\n|") > 60 and filled(page) == page
