"""What the verbs print: plain tables that survive a narrow terminal or a pipe."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from ferrum.errors import one_line


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_notes(notes: Iterable[str]) -> None:
    """What the user should know although nothing failed; on stderr, since stdout may be read by a program."""
    for note in notes:
        print(f"note: {one_line(note)}", file=sys.stderr)


def terminal_width() -> int | None:
    """Columns of the terminal behind stdout; None when stdout is a pipe or a file (nothing is cut or folded there)."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def table(header: Sequence[str], rows: Sequence[Sequence[str]], width: int | None = None) -> str:
    """Aligned columns; when they do not fit into ``width``, one block of ``NAME: value`` lines per row."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    if width is not None and sum(widths) + 2 * (len(widths) - 1) > width:
        blocks = ["\n".join(f"{name}: {cell}" for name, cell in zip(header, row, strict=True)) for row in rows]
        return "\n\n".join(blocks)
    lines = ("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in (header, *rows))
    return "\n".join(lines)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print(table(header, rows, terminal_width()))


def size(nbytes: float) -> str:
    """``1536`` becomes ``1.5 KiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(nbytes) < 1024:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.1f} TiB"


def count(number: float) -> str:
    """``1536000`` becomes ``1.54 M``."""
    for unit in ("", " K", " M", " G"):
        if abs(number) < 1000:
            return f"{number:.0f}" if unit == "" else f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g} T"
