"""What is measured of one NVIDIA GPU, part by part: ceilings, kernels, steps, the engine, and torch beside them.

A part writes what it found into a ``Report``; ``gpu.py`` runs each in a process of its own.
"""

from __future__ import annotations

import time
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ferrum.cli.verify import load_small
from ferrum.devices.cuda_driver import Driver, Gpu
from ferrum.devices.options import DeviceOptions
from ferrum.engine.engine import Engine
from ferrum.engine.options import EngineOptions
from ferrum.engine.params import SamplingParams
from ferrum.errors import FerrumError
from ferrum.pack.launches import LAUNCHES_NAME, decode_table
from ferrum.pack.programs import build_of, kv_groups
from ferrum.proof.numbers import prove_pack
from tests.bench.gpu_models import SHAPES, PreparedPack, RandomExecutor
from tests.bench.gpu_report import Report, predicted
from tests.bench.gpu_time import ceilings, middle, seconds, time_launches

PAGE = Path(__file__).resolve().parents[2] / "docs/targets.md"
SEQUENCES = (1, 4, 16, 32)
ROWS = (1, 2, 4, 8, 16, 32, 64)
SAMPLED_ROWS = (1, 32)
PREFILL = (128, 512, 2048)
CONTEXTS = (1024, 8000)
ATTENTION_ROWS = (1, 16)
TIMED_LAUNCHES = 200  # of a kernel, in one graph
TIMED_STEPS = 5  # of each sample of a step
SAMPLES = 5  # of each time
COMPARED = 65  # tokens that prefill and decode must agree about
PROMPT, NEW = 64, 96  # tokens of a sequence in the engine
OPTIONS = DeviceOptions(max_seqs=64, max_tokens=2048, max_model_len=8192)


def decode_state(executor: RandomExecutor, rows: int, context: int) -> None:
    """Describe a greedy step of ``rows`` sequences that are ``context`` tokens long."""
    b, limits = executor.buffers, executor.limits
    blocks = -(-context // limits.block_size)
    random = np.random.default_rng(rows)
    b.num_tokens = b.num_seqs = b.num_samples = rows
    b.tokens[:rows] = random.integers(0, limits.vocab_size, rows)
    b.positions[:rows] = context - 1
    b.query_start[: rows + 1] = np.arange(rows + 1)
    b.sample_rows[:rows] = np.arange(rows)
    b.context_len[:rows] = context
    for s in range(rows):
        b.block_table[s, 0, :blocks] = (np.arange(blocks) * rows + s) % limits.num_blocks
    b.top_p[:rows] = b.repetition_penalty[:rows] = 1
    b.num_logprobs[:rows] = -1


def sampled_state(executor: RandomExecutor, rows: int) -> None:
    """A step of ``rows`` sequences that draw as Qwen's own settings ask for."""
    decode_state(executor, rows, 256)
    b = executor.buffers
    b.temperature[:rows], b.top_k[:rows], b.top_p[:rows], b.min_p[:rows] = 0.6, 20, 0.95, 0
    b.seed[:rows], b.draw[:rows] = np.arange(rows), 0


def prefill_state(executor: RandomExecutor, tokens: int) -> None:
    """Describe the prefill of one prompt."""
    decode_state(executor, 1, tokens)
    b = executor.buffers
    b.num_tokens = tokens
    b.tokens[:tokens] = np.random.default_rng(tokens).integers(0, executor.limits.vocab_size, tokens)
    b.positions[:tokens] = np.arange(tokens)
    b.query_start[1], b.sample_rows[0] = tokens, tokens - 1


def consistent(executor: RandomExecutor, length: int) -> float:
    """Relative error between a prompt in one step and token by token: kernels of both classes must agree."""
    prefill_state(executor, length)
    executor.step()
    whole = executor.logits()[0].copy()
    tokens = executor.buffers.tokens[:length].copy()
    for i in range(length):
        decode_state(executor, 1, i + 1)
        executor.buffers.tokens[0] = tokens[i]
        executor.step()
    error = float(np.abs(executor.logits()[0] - whole).max() / np.abs(whole).max())
    return error if np.isfinite(whole).all() and whole.any() else float("nan")


def step_seconds(executor: RandomExecutor) -> float:
    """Device time of the step that the buffers describe, without the host."""
    executor.step()
    b = executor.buffers
    graph = executor._lanes[executor._lane].graphs[executor._recordings.find(b.num_tokens, b.num_seqs)]
    launch = partial(executor._call, "cuGraphLaunch", graph, executor._stream)
    return middle(seconds(executor, launch, repeats=TIMED_STEPS, samples=SAMPLES))


def time_kernels(executor: RandomExecutor, pack: PreparedPack) -> dict[str, dict[str, Any]]:
    """For every kernel of the step that the buffers describe: launches, microseconds of one, bytes and operations of one."""
    executor.step()
    b = executor.buffers
    records = {k.symbol: k for k in build_of(pack.manifest).kernels}
    by_symbol = defaultdict(list)
    for step in executor._recordings.all[executor._recordings.find(b.num_tokens, b.num_seqs)].launches:
        by_symbol[step.symbol].append(step)
    sampled = {launch.symbol for launch in decode_table(pack.member(LAUNCHES_NAME)).launches if launch.class_rows == "samples"}
    found = {}
    for symbol, steps in by_symbol.items():
        repeats = max(1, TIMED_LAUNCHES // len(steps))
        each = middle(time_launches(executor, steps, repeats, min(SAMPLES, 3))) / len(steps)
        entry: dict[str, Any] = {"launches": len(steps), "us": 1e6 * each}
        record = records.get(symbol)
        if record is not None and record.calls:
            rows = b.num_samples if symbol in sampled else b.num_tokens
            entry |= {
                "spec": record.spec,
                "bytes": (record.weight_bytes + rows * record.bytes_per_token) / record.calls,
                "flops": rows * record.flops_per_token / record.calls,
            }
        if "attention" in symbol:
            entry["bytes"] = int(b.context_len[: b.num_seqs].sum()) * _kv_bytes_per_token(pack)
        found[symbol] = entry
    return found


def _kv_bytes_per_token(pack: PreparedPack) -> float:
    """Bytes of keys and values of one token in one layer."""
    kv = kv_groups(pack.manifest)[0]
    return kv.unit_bytes / kv.unit / kv.layers


def rate(kernels: dict[str, dict[str, Any]], part: str, what: str) -> float:
    """Bytes or operations a second over all launches of the kernels whose spec has ``part`` in its name."""
    chosen = [e for e in kernels.values() if part in e.get("spec", "")]
    time_of = sum(e["launches"] * e["us"] for e in chosen) / 1e6
    return sum(e["launches"] * e[what] for e in chosen) / time_of if time_of else 0.0


def end_to_end(executor: RandomExecutor, sequences: int, prompt: int, new: int) -> dict[str, float]:
    """Tokens/s with the whole engine: greedy, all sequences at once."""
    engine = Engine(executor, EngineOptions(prefix_cache=False))
    random = np.random.default_rng(sequences)
    params = SamplingParams(temperature=0, max_tokens=new, ignore_eos=True)
    for i in range(sequences):
        engine.add(str(i), random.integers(0, executor.limits.vocab_size, prompt).tolist(), params)
    started, first, count = time.perf_counter(), 0.0, 0
    seen: set[str] = set()
    while engine.has_work:
        events = engine.step()
        seen.update(e.request_id for e in events)
        if first:
            count += len(events)
        elif len(seen) == sequences:
            first = time.perf_counter()
    ended = time.perf_counter()
    return {"decode_tokens_per_s": count / (ended - first), "prefill_s": first - started}


def run_model(report: Report, driver: Driver, gpu: Gpu, folder: Path, name: str, quant: str) -> None:
    pack = PreparedPack(folder)
    found: dict[str, Any] = {}
    report.raw[f"{name} {quant}"] = found
    executor = RandomExecutor(driver, gpu, pack, OPTIONS)
    try:
        found["consistency_error"] = error = consistent(executor, COMPARED)
        if not error <= 0.05:
            raise FerrumError("device-failed", f"{name} {quant}: decode and prefill differ by {error:.3f}", "bench", "")
        weights = build_of(pack.manifest).weight_bytes
        read = report.read_gb_per_s
        for rows in ROWS:
            decode_state(executor, rows, 256)
            found[f"step_us decode x{rows}"] = 1e6 * step_seconds(executor)
            found[f"kernels decode x{rows}"] = time_kernels(executor, pack)
        for rows in SAMPLED_ROWS:
            sampled_state(executor, rows)
            found[f"step_us sampled x{rows}"] = 1e6 * step_seconds(executor)
            found[f"kernels sampled x{rows}"] = {s: e for s, e in time_kernels(executor, pack).items() if s.startswith("sample")}
            executor.buffers.temperature[:rows] = 0
        for tokens in PREFILL:
            prefill_state(executor, tokens)
            found[f"step_us prefill {tokens}"] = 1e6 * step_seconds(executor)
            found[f"kernels prefill {tokens}"] = time_kernels(executor, pack)
        for context in CONTEXTS:
            for rows in ATTENTION_ROWS:
                if rows * -(-context // executor.limits.block_size) <= executor.limits.num_blocks:
                    decode_state(executor, rows, context)
                    kernels = time_kernels(executor, pack)
                    found[f"attention x{rows} {context}"] = {s: e for s, e in kernels.items() if "attention" in s}
        _kernel_rows(report, f"{name} {quant}", found, read)
        device = 1e6 / found["step_us decode x1"]
        report.row(
            f"{name} {quant} step on the device, 1 row",
            f"{device:.0f} steps/s",
            _share(weights * device / 1e9, read),
        )
        if expected := predicted(name, quant, gpu.name, PAGE.read_text(encoding="utf-8")):
            report.row(f"{name} {quant} step, predicted", f"{expected:.0f} steps/s", f"{100 * device / expected:.0f} % reached")
        for rows in SAMPLED_ROWS:
            sampled, greedy = found[f"step_us sampled x{rows}"], found[f"step_us decode x{rows}"]
            report.row(f"{name} {quant} step sampled, {rows} rows", f"{sampled:.0f} us", f"{greedy:.0f} us greedy")
        report.row(
            f"{name} {quant} prefill {PREFILL[-1]}", f"{PREFILL[-1] / found[f'step_us prefill {PREFILL[-1]}'] * 1e6:.0f} tokens/s"
        )
        for sequences in SEQUENCES:
            end_to_end(executor, sequences, 16, 8)
            found[f"engine x{sequences}"] = result = end_to_end(executor, sequences, PROMPT, NEW)
            report.row(f"{name} {quant} decode, {sequences} sequences", f"{result['decode_tokens_per_s']:.0f} tokens/s")
    finally:
        executor.close()


def _share(speed: float, read: float) -> str:
    return f"{100 * speed / read:.0f} % of reads" if read else ""


def _kernel_rows(report: Report, model: str, found: dict[str, Any], read: float) -> None:
    for rows in (1, 16, 64):
        if kernels := found.get(f"kernels decode x{rows}"):
            speed = rate(kernels, "linear", "bytes") / 1e9
            report.row(f"{model} products, {rows} rows", f"{speed:.0f} GB/s", _share(speed, read))
    kernels = found[f"kernels prefill {PREFILL[-1]}"]
    report.row(f"{model} products, {PREFILL[-1]} rows", f"{rate(kernels, 'linear', 'flops') / 1e12:.0f} TFLOP/s")
    for key in [key for key in found if key.startswith("attention")]:
        speed = rate(found[key], "attention", "bytes") / 1e9
        report.row(f"{model} {key}", f"{speed:.0f} GB/s", _share(speed, read))


def run_ceilings(report: Report, driver: Driver, gpu: Gpu, folder: Path, code: bytes) -> None:
    """``code``: the cubin of ``gpu_time.CEILINGS``."""
    executor = RandomExecutor(driver, gpu, PreparedPack(folder), DeviceOptions(max_seqs=1, max_tokens=16, max_model_len=256))
    report.raw["ceilings"] = found = {"copy_gb_per_s": executor.measure_roofs()["read_gb_per_s"]}
    try:
        found.update(ceilings(executor, code))
    finally:
        executor.close()
        for name, value in found.items():
            report.row(name, f"{value:.0f}")


def run_torch_kernels(report: Report) -> None:
    gpu_torch = _torch()
    found = report.raw["torch"] = {"matmul_bf16_tflops": gpu_torch.matmul_tflops()}
    report.row("torch product 8192, bf16", f"{found['matmul_bf16_tflops']:.0f} TFLOP/s")
    for name in ("0.6b", "4b", "8b"):
        config = SHAPES[name]
        hidden, inner = config["hidden_size"], config["intermediate_size"]
        for n, k in ((2 * inner, hidden), (hidden, inner)):
            for rows in (*ROWS, *PREFILL):
                found[f"linear {n}x{k} x{rows} us"] = gpu_torch.linear_us(n, k, rows)
        for context in CONTEXTS:
            for rows in (1, 16):
                heads = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
                found[f"attention {name} x{rows} {context} us"] = gpu_torch.attention_us(rows, context, *heads)


def run_torch_model(report: Report, name: str, rows: int) -> None:
    found = _torch().decode_tokens_per_s(SHAPES[name], rows)
    report.raw[f"torch.compile {name} x{rows}"] = found
    report.row(f"torch.compile {name} bf16, {rows} sequences", f"{found:.0f} tokens/s")


def _torch() -> Any:
    """The baselines. Raises FerrumError where there is no torch that uses CUDA."""
    try:
        from tests.bench import gpu_torch
    except ImportError as error:
        raise FerrumError("device-missing", f"{error.name} is not installed", "baselines", "") from None
    if reason := gpu_torch.available():
        raise FerrumError("device-missing", reason, "baselines", "")
    return gpu_torch


def answers_itself(report: Report, pack: Path) -> None:
    """The built-in model's self-test on this GPU. Raises FerrumError when it fails."""
    checked = prove_pack(pack, load_small, trust=True)
    report.raw[f"self-test {pack.name}"] = [msgspec.to_builtins(case) for case in checked.cases]
    if not checked.ok:
        bad = next(c for c in checked.checks if c.state == "failed")
        what = f"{bad.name}: {bad.detail}"
        raise FerrumError("pack-verify-failed", what, str(pack), "no number of this format is to be trusted")
    if not checked.cases:
        raise FerrumError("pack-verify-failed", "the pack has no self-test", str(pack), "make it with ferrum compile")
    worst = max(case.error for case in checked.cases)
    report.row(f"{pack.stem} answers its self-test", f"{worst:.4f}", f"{checked.tolerance} allowed")
