"""OpenVINO GenAI on a GGUF file of the same weights (bfloat16: on its float16 twin)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tests.bench.peers.cases import Case
from tests.bench.peers.install import Peers


def bench(peers: Peers, folder: Path, cases: Sequence[Case], threads: int) -> dict[str, float]:
    chosen = [c for c in cases if c.sequences == 1]
    order = {"folder": str(folder), "threads": threads, "cases": [[c.prompt, c.new] for c in chosen]}
    return parse(peers.worker("openvino_worker", json.dumps(order)), chosen)


def parse(text: str, cases: Sequence[Case]) -> dict[str, float]:
    speeds: list[float] = json.loads(text)
    return {case.name: speed for case, speed in zip(cases, speeds, strict=True)}
