"""ferrum, through its command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.bench.peers.cases import Case
from tests.bench.peers.load import MODEL_NAME
from tests.bench.peers.process import Command, run

FERRUM: tuple[str | Path, ...] = (sys.executable, "-m", "ferrum")


def bench_command(pack: Path, case: Case, threads: int) -> list[str | Path]:
    return [
        *FERRUM, "bench", pack, "--rounds", "1", "--output", "json", "--threads", str(threads),
        "--prompt-tokens", str(case.prompt), "--max-tokens", str(max(2, case.new)), "--concurrency", str(case.sequences),
    ]  # fmt: skip


def parse(text: str, case: Case) -> tuple[float, dict[str, float]]:
    """(tokens/s, roofs) from what ``ferrum bench --output json`` prints."""
    result: dict[str, Any] = json.loads(text)
    roofs = {k: v for k, v in result["roofs"].items() if not k.endswith("tokens_per_s")}
    return result["prefill_tokens_per_s" if case.prefill else "decode_tokens_per_s"], roofs


def bench(pack: Path, cases: Sequence[Case], threads: int, roofs: list[Mapping[str, float]]) -> dict[str, float]:
    found = {}
    for case in cases:
        found[case.name], measured = parse(run(bench_command(pack, case, threads)), case)
        roofs.append(measured)
    return found


def long_prompts(pack: Path, cases: Sequence[Case], threads: int) -> list[dict[str, Any]]:
    """What ``ferrum_worker`` found for each case."""
    order = json.dumps({"pack": str(pack), "cases": [(c.prompt, c.new) for c in cases], "threads": threads})
    text = run([sys.executable, "-m", "tests.bench.peers.ferrum_worker", order])
    result: list[dict[str, Any]] = json.loads(text.splitlines()[-1])
    return result


def serve_command(pack: Path, port: int, slots: int, context: int, kv_bytes: int, threads: int) -> Command:
    return [
        *FERRUM, "serve", pack, "--port", str(port), "--threads", str(threads), "--max-num-seqs", str(slots),
        "--max-model-len", str(context), "--kv-cache-memory", str(kv_bytes), "--served-model-name", MODEL_NAME,
    ]  # fmt: skip


def one_shot_command(pack: Path, prompt: str, threads: int) -> Command:
    return [*FERRUM, "run", pack, "--threads", str(threads), "--max-model-len", "1024", "--max-tokens", "1", "--prompt", prompt]
