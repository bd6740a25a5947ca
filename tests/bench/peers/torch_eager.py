"""transformers on torch, as most people run a model first."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tests.bench.peers.cases import Case
from tests.bench.peers.install import Peers


def bench(peers: Peers, folder: Path, cases: Sequence[Case], threads: int) -> dict[str, float]:
    chosen = [c for c in cases if c.sequences == 1 and (c.prefill is False or c.prompt <= 128)]
    order = {"folder": str(folder), "threads": threads, "cases": [[c.prompt, min(c.new, 12)] for c in chosen]}
    speeds: list[float] = json.loads(peers.worker("torch_worker", json.dumps(order)))
    return {case.name: speed for case, speed in zip(chosen, speeds, strict=True)}
