"""Sources with tile instructions on machines without tiles: ``tiles.h`` before them."""

from __future__ import annotations

from pathlib import Path

TILES = (Path(__file__).parent / "tiles.h").read_text(encoding="utf-8")


def with_tiles(source: str) -> str:
    """A C source whose tile instructions are functions."""
    return TILES + source
