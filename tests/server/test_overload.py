"""Ten times as many clients as there is room for: the others hear when to come again. The figures: ``soak_overload``."""

from __future__ import annotations

import json
import random
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.engine.null_pack import write_null_pack
from tests.server.test_lifecycle import Served, served

RUNNING, WAITING = 4, 4
CAPACITY = RUNNING + WAITING
BODY: dict[str, Any] = {"n": 1, "max_tokens": 150, "ignore_eos": True, "seed": 1}


@dataclass
class Crowd:
    """What so many clients were told. ``in_time``: answers before the end. ``refusals``: seconds until each."""

    answers: int = 0
    in_time: int = 0
    refusals: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def crowd(server: Served, clients: int, seconds: float) -> Crowd:
    """Each client asks again and again; one that is refused comes again when it was told to, or up to a second later."""
    found, lock, end = Crowd(), threading.Lock(), time.monotonic() + seconds

    def client() -> None:
        while time.monotonic() < end:
            started = time.monotonic()
            connection = server.send("POST", "/v1/completions", {"model": "minimal", "prompt": "Hi", **BODY})
            response = connection.getresponse()
            body, taken = response.read(), time.monotonic() - started
            connection.close()
            again = response.headers.get("retry-after")
            with lock:
                if response.status == 200:
                    found.answers += 1
                    found.in_time += time.monotonic() < end
                elif response.status in (429, 503) and again is not None and json.loads(body)["error"]["code"] == "queue_full":
                    found.refusals.append(taken)
                else:
                    found.wrong.append(f"{response.status} {body[:200]!r}")
            if again is not None:
                time.sleep(min(float(again) + random.random(), max(0.0, end - time.monotonic())))

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_null_pack(tmp_path_factory.mktemp("pack") / "null.fpk")


def test_who_is_refused_is_told_when_to_come_again(pack: Path, tmp_path: Path) -> None:
    with served(pack, tmp_path, max_num_seqs=RUNNING, max_queue=WAITING) as server:
        found = crowd(server, 10 * CAPACITY, 1.0)
        assert not found.wrong and found.answers and found.refusals
        assert server.get("/health")[1]["status"] == "healthy"
