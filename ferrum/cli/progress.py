"""Progress on stderr: bars that move in a terminal, one line for each finished stage elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ferrum.cli.output import size

Progress = Callable[[str, int, int], None]
_BYTES = 1 << 16  # stages and their steps are fewer than that, so a larger total counts bytes
_STEPS = 4  # a stage of so few steps tells nothing between two of them, so its bar wanders


def amount(done: int, total: int) -> str:
    """How far a stage is: ``2/7``, or ``1.2 GiB of 8.1 GiB``."""
    return f"{size(done)} of {size(total)}" if total >= _BYTES else f"{done}/{total}"


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
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    spinner, name = SpinnerColumn(finished_text="✓"), TextColumn("{task.description}")
    columns = [spinner, name, BarColumn(bar_width=None), TextColumn("{task.fields[amount]}"), TimeElapsedColumn()]
    with Bars(*(columns if console.width >= 60 else [spinner, name, columns[3]]), console=console) as bars:
        tasks: dict[str, Any] = {}

        def update(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=None, amount="")
            known = done >= total or total > _STEPS
            bars.update(tasks[stage], completed=done, total=max(total, 1) if known else None, amount=amount(done, total))
            if done >= total:
                bars.update(tasks[stage], completed=max(total, 1))

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
