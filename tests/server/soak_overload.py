"""Beside ten times as many clients as there is room for, those that run lose nothing, and the others are told at once.

The figures of time are the promises themselves. Other work on the machine may spoil one try, so the best of a few counts: part of
``make soak``, for a machine that does nothing else.
"""

from __future__ import annotations

import statistics
from pathlib import Path

from tests.server.test_lifecycle import served
from tests.server.test_overload import CAPACITY, RUNNING, WAITING, crowd, pack  # noqa: F401 - a fixture

LEAST_KEPT = 0.95
REFUSED_SECONDS = 0.05
TRIES = 4
SECONDS = 5.0


def test_throughput_is_kept_and_refusals_come_at_once(pack: Path, tmp_path: Path) -> None:  # noqa: F811
    told = []
    with served(pack, tmp_path, max_num_seqs=RUNNING, max_queue=WAITING) as server:
        crowd(server, CAPACITY, 1.0)
        for _ in range(TRIES):
            alone, pressed = crowd(server, CAPACITY, SECONDS), crowd(server, 10 * CAPACITY, SECONDS)
            assert not alone.wrong and not alone.refusals and not pressed.wrong
            kept, refused = pressed.in_time / alone.in_time, statistics.quantiles(pressed.refusals, n=20)[-1]
            if kept >= LEAST_KEPT and refused <= REFUSED_SECONDS:
                return
            told.append(f"{kept:.2f} of the answers, refused after {1000 * refused:.0f} ms")
    raise AssertionError("; ".join(told))
