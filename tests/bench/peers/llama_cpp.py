"""llama.cpp: ``llama-bench`` for one sequence, ``llama-batched-bench`` for several, ``llama-server``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bench.peers.cases import Case
from tests.bench.peers.load import MODEL_NAME
from tests.bench.peers.process import Command, run
from tests.bench.peers.record import Failure


def bench_command(programs: Path, model: Path, prompts: Sequence[int], new: int, threads: int) -> list[str | Path]:
    """One process: each prompt alone, then ``new`` tokens of one sequence (0: none)."""
    command: list[str | Path] = [programs / "llama-bench", "-m", model, "-t", str(threads), "-r", "1", "-o", "json"]
    return [*command, "-p", ",".join(map(str, prompts)) or "0", "-n", str(new)]


def batched_command(programs: Path, model: Path, cases: Sequence[Case], threads: int) -> list[str | Path]:
    """One process for cases that differ in the number of sequences alone; ``new`` is the smallest of theirs."""
    prompt, new = cases[0].prompt, min(c.new for c in cases)
    counts = [c.sequences for c in cases]
    size = max(counts) * (prompt + new)
    return [
        programs / "llama-batched-bench", "-m", model, "-t", str(threads), "-tb", str(threads), "-c", str(size),
        "-npp", str(prompt), "-ntg", str(new), "-npl", ",".join(map(str, counts)), "--output-format", "jsonl",
    ]  # fmt: skip


def parse_bench(text: str, decode: Case | None) -> dict[str, float]:
    """Lines of ``llama-bench -o json``; its decode figure is that of ``decode``."""
    found = {}
    for result in _list(text):
        case = decode if result["n_gen"] else Case(result["n_prompt"], 1)
        if case is not None:
            found[case.name] = float(result["avg_ts"])
    if not found:
        raise Failure("llama-bench printed no result")
    return found


def parse_batched(text: str, cases: Sequence[Case]) -> dict[str, float]:
    """Lines of ``llama-batched-bench --output-format jsonl``."""
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    speeds = {line["pl"]: float(line["speed_tg"]) for line in lines}
    if missing := [c.name for c in cases if c.sequences not in speeds]:
        raise Failure(f"llama-batched-bench printed nothing for {', '.join(missing)}")
    return {c.name: speeds[c.sequences] for c in cases}


def bench(programs: Path, model: Path, cases: Sequence[Case], threads: int) -> dict[str, float]:
    single = next((c for c in cases if not c.prefill and c.sequences == 1), None)
    prompts = [c.prompt for c in cases if c.prefill]
    text = run(bench_command(programs, model, prompts, single.new if single else 0, threads))
    found = parse_bench(text, single)
    several = [c for c in cases if not c.prefill and c.sequences > 1]
    if several:
        found |= parse_batched(run(batched_command(programs, model, several, threads)), several)
    return found


def long_prompt(programs: Path, model: Path, case: Case, threads: int) -> dict[str, float]:
    """One prompt, without computing it a first time to warm up."""
    return parse_bench(run([*bench_command(programs, model, (case.prompt,), 0, threads), "--no-warmup"]), None)


def at_depth(programs: Path, model: Path, case: Case, threads: int, cache: str, parts: int) -> list[float]:
    """Decode of one sequence that has ``case.prompt`` tokens already, in equal parts; ``cache``: the KV cache's type."""
    command = bench_command(programs, model, (), case.new // parts, threads)
    command += ["-d", str(case.prompt), "-ctk", cache, "-ctv", cache, "-fa", "on"]
    command[command.index("-r") + 1] = str(parts)
    return [float(v) for v in _list(run(command))[0]["samples_ts"]]


def serve_command(programs: Path, model: Path, port: int, slots: int, context: int, threads: int, cache: str) -> Command:
    """``context`` tokens for each slot in a KV cache of this type; copies of idle slots are not kept, as ferrum keeps none."""
    kinds = [] if cache == "f16" else ["-ctk", cache, "-ctv", cache, "-fa", "on"]
    return [
        programs / "llama-server", "-m", model, "--port", str(port), "-t", str(threads), "-tb", str(threads),
        "-np", str(slots), "-c", str(slots * context), "--cache-ram", "0", "--alias", MODEL_NAME, *kinds,
    ]  # fmt: skip


def one_shot_command(programs: Path, model: Path, prompt: str, threads: int) -> Command:
    return [
        programs / "llama-completion", "-m", model, "-t", str(threads), "-c", "1024", "-n", "1", "-p", prompt,
        "-no-cnv", "--no-warmup",
    ]  # fmt: skip


def _list(text: str) -> list[dict[str, Any]]:
    try:
        result: list[dict[str, Any]] = json.loads(text)
    except ValueError:
        raise Failure(f"llama-bench printed no JSON: {text[-200:]}") from None
    return result
