"""What the verbs print: plain tables that survive a narrow terminal or a pipe, and progress on stderr."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ferrum.errors import one_line

Progress = Callable[[str, int, int], None]


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


@contextmanager
def stage_progress(quiet: bool = False) -> Iterator[Progress]:
    """A callback ``(stage, done, total)``: bars in a terminal, one line per finished stage elsewhere."""
    if quiet:
        yield lambda stage, done, total: None
        return
    if not sys.stderr.isatty():
        yield _line_progress()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    columns = [TextColumn("{task.description}"), BarColumn(bar_width=None), MofNCompleteColumn(), TimeElapsedColumn()]
    with Bars(*(columns if console.width >= 60 else columns[:2]), console=console) as bars:
        tasks: dict[str, Any] = {}

        def update(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield update


def _line_progress() -> Progress:
    started: dict[str, float] = {}
    finished: set[str] = set()

    def update(stage: str, done: int, total: int) -> None:
        started.setdefault(stage, time.monotonic())
        if done >= total and stage not in finished:
            finished.add(stage)
            print(f"{stage}: {time.monotonic() - started[stage]:.1f} s", file=sys.stderr, flush=True)

    return update
