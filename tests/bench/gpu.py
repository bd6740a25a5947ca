"""Everything about speed on one NVIDIA GPU in one command under ten minutes: ``make bench-gpu``.

Ceilings of the machine, every kernel at the rows of decode and prefill, attention over long contexts, and whole models of true
shapes with random weights at 1, 4, 16 and 32 sequences; beside them torch (cuBLASLt, SDPA, torch.compile with a static cache)
where it uses CUDA. Nothing is timed unless the built-in model answers its self-test on this GPU first. Raw numbers go to
``docs/bench/<date>-<gpu>/gpu.json``; the table comes last. ``--prepare`` makes the code on a machine without a GPU.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ferrum.codegen.target import BY_NAME, GpuTarget, parse_target
from ferrum.codegen.toolchains.gpu import find_gpu_toolchain
from ferrum.devices.cuda_driver import Driver, Gpu, choose_gpu, open_driver
from ferrum.devices.options import DeviceOptions
from ferrum.engine.engine import Engine
from ferrum.engine.options import EngineOptions
from ferrum.engine.params import SamplingParams
from ferrum.errors import FerrumError
from ferrum.pack.launches import LAUNCHES_NAME, decode_table
from ferrum.pack.programs import kv_groups, require_step
from tests.bench import gpu_torch
from tests.bench.gpu_models import SHAPES, PreparedPack, RandomExecutor, prepare
from tests.bench.gpu_time import ceilings, middle, seconds, time_launches

FOLDER = Path("build/bench-gpu")
MODELS = (("0.6b", "none"), ("4b", "none"), ("8b", "int4-g128"), ("0.6b", "int4-g128"), ("8b", "none"))
SEQUENCES = (1, 4, 16, 32)
ROWS = (1, 2, 4, 8, 16, 32, 64)
SAMPLED_ROWS = (1, 32)
PREFILL = (128, 512, 2048)
CONTEXTS = (1024, 8000)
ATTENTION_ROWS = (1, 16)
TIMED_LAUNCHES = 200  # of a kernel, in one graph
LIMIT_SECONDS = 570
OPTIONS = DeviceOptions(max_seqs=64, max_tokens=2048, max_model_len=8192)


class Report:
    """What was found, and how much time is left."""

    def __init__(self, limit: float) -> None:
        self.end = time.monotonic() + limit
        self.raw: dict[str, Any] = {"skipped": []}
        self.table: list[tuple[str, str, str]] = []

    def section(self, name: str, needs: float, work: Callable[[], None]) -> None:
        """Run a part that takes about ``needs`` seconds; what fails or no longer fits is said and the rest goes on."""
        left = self.end - time.monotonic()
        if left < needs:
            self.raw["skipped"].append(f"{name}: {left:.0f} s were left")
            return
        started = time.monotonic()
        try:
            work()
        except Exception as error:  # a baseline of another version must not cost the measurement
            self.raw["skipped"].append(f"{name}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        print(f"{name}: {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)

    def row(self, what: str, value: str, share: str = "") -> None:
        self.table.append((what, value, share))


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


def consistent(executor: RandomExecutor, length: int = 65) -> float:
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
    return middle(seconds(executor, lambda: executor._call("cuGraphLaunch", graph, executor._stream), repeats=5))


def time_kernels(executor: RandomExecutor, pack: PreparedPack) -> dict[str, dict[str, Any]]:
    """For every kernel of the step that the buffers describe: launches, microseconds of one, bytes and operations of one."""
    executor.step()
    b = executor.buffers
    records = {k.symbol: k for k in require_step(pack.manifest).kernels}
    by_symbol = defaultdict(list)
    for step in executor._recordings.all[executor._recordings.find(b.num_tokens, b.num_seqs)].launches:
        by_symbol[step.symbol].append(step)
    sampled = {launch.symbol for launch in decode_table(pack.member(LAUNCHES_NAME)).launches if launch.class_rows == "samples"}
    found = {}
    for symbol, steps in by_symbol.items():
        each = middle(time_launches(executor, steps, max(1, TIMED_LAUNCHES // len(steps)), 3)) / len(steps)
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


def end_to_end(executor: RandomExecutor, sequences: int, prompt: int = 64, new: int = 96) -> dict[str, float]:
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
        found["consistency_error"] = error = consistent(executor)
        if not error <= 0.05:
            raise FerrumError("device-failed", f"{name} {quant}: decode and prefill differ by {error:.3f}", "bench", "")
        weights = require_step(pack.manifest).weight_bytes
        read = report.raw["ceilings"].get("read_gb_per_s") or report.raw["ceilings"]["copy_gb_per_s"]
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
            f"{weights * device / read / 1e7:.0f} % of reads",
        )
        for rows in SAMPLED_ROWS:
            sampled, greedy = found[f"step_us sampled x{rows}"], found[f"step_us decode x{rows}"]
            report.row(f"{name} {quant} step sampled, {rows} rows", f"{sampled:.0f} us", f"{greedy:.0f} us greedy")
        report.row(
            f"{name} {quant} prefill {PREFILL[-1]}", f"{PREFILL[-1] / found[f'step_us prefill {PREFILL[-1]}'] * 1e6:.0f} tokens/s"
        )
        for sequences in SEQUENCES:
            end_to_end(executor, sequences, 16, 8)
            found[f"engine x{sequences}"] = result = end_to_end(executor, sequences)
            report.row(f"{name} {quant} decode, {sequences} sequences", f"{result['decode_tokens_per_s']:.0f} tokens/s")
    finally:
        executor.close()


def _kernel_rows(report: Report, model: str, found: dict[str, Any], read: float) -> None:
    for rows in (1, 16, 64):
        if kernels := found.get(f"kernels decode x{rows}"):
            speed = rate(kernels, "linear", "bytes") / 1e9
            report.row(f"{model} products, {rows} rows", f"{speed:.0f} GB/s", f"{100 * speed / read:.0f} % of reads")
    kernels = found[f"kernels prefill {PREFILL[-1]}"]
    report.row(f"{model} products, {PREFILL[-1]} rows", f"{rate(kernels, 'linear', 'flops') / 1e12:.0f} TFLOP/s")
    for key in [key for key in found if key.startswith("attention")]:
        speed = rate(found[key], "attention", "bytes") / 1e9
        report.row(f"{model} {key}", f"{speed:.0f} GB/s", f"{100 * speed / read:.0f} % of reads")


def run_ceilings(report: Report, driver: Driver, gpu: Gpu, folder: Path, target: GpuTarget) -> None:
    pack = PreparedPack(folder)
    executor = RandomExecutor(driver, gpu, pack, DeviceOptions(max_seqs=1, max_tokens=16, max_model_len=256))
    report.raw["ceilings"] = found = {"copy_gb_per_s": executor.measure_roofs()["read_gb_per_s"]}
    try:
        found.update(ceilings(executor, lambda source: find_gpu_toolchain(target).compile(source, target)))
    finally:
        executor.close()
        for name, value in found.items():
            report.row(name, f"{value:.0f}")


def run_torch_kernels(report: Report) -> None:
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
    found = gpu_torch.decode_tokens_per_s(SHAPES[name], rows)
    report.raw[f"torch.compile {name} x{rows}"] = found
    report.row(f"torch.compile {name} bf16, {rows} sequences", f"{found:.0f} tokens/s")


def answers_itself(target: str) -> None:
    """The built-in model's self-test on this GPU. Raises FerrumError when it fails."""
    from ferrum.cli.verify import load_small
    from ferrum.llm import resolve_pack
    from ferrum.proof.numbers import prove_pack

    path = resolve_pack("tiny", target=target)
    report = prove_pack(path, load_small, trust=True)
    if not report.ok:
        bad = next(c for c in report.checks if c.state == "failed")
        raise FerrumError("pack-verify-failed", f"{bad.name}: {bad.detail}", str(path), "nothing is timed that is wrong")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.gpu", description=__doc__)
    parser.add_argument("--prepare", default="", metavar="TARGET", help="only make the code, for this target")
    parser.add_argument("--target", default="cuda", help="target of the code that is timed (default: this GPU's)")
    parser.add_argument("--models", default=",".join(f"{n}:{q}" for n, q in MODELS), help="NAME:QUANT with commas")
    parser.add_argument("--seconds", type=float, default=LIMIT_SECONDS, help=f"time limit (default {LIMIT_SECONDS})")
    parser.add_argument("--no-check", action="store_true", help="do not run the built-in model first")
    args = parser.parse_args()
    models = [tuple(text.split(":")) for text in args.models.split(",")]
    if args.prepare:
        for name, quant in models:
            print(prepare(name, quant, _gpu_target(args.prepare), FOLDER))
        return 0
    try:
        return _measure(args, models)
    except FerrumError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _gpu_target(text: str) -> GpuTarget:
    target = BY_NAME.get(text) or parse_target(text)
    assert isinstance(target, GpuTarget)
    return target


def _measure(args: argparse.Namespace, models: list[tuple[str, ...]]) -> int:
    driver, report = open_driver(), Report(args.seconds)
    target = _gpu_target(args.target)
    gpu = choose_gpu(driver, target.arch, target.name, "bench")
    if not args.no_check:
        answers_itself(target.name)
    report.raw |= {"gpu": gpu.name, "target": target.name, "memory": gpu.memory, "argv": sys.argv[1:]}
    folders = {(name, quant): prepare(name, quant, target, FOLDER) for name, quant in models}
    first = next(iter(folders.values()))
    report.section("ceilings", 20, lambda: run_ceilings(report, driver, gpu, first, target))
    for (name, quant), folder in folders.items():
        report.section(f"{name} {quant}", 45, lambda f=folder, n=name, q=quant: run_model(report, driver, gpu, f, n, q))
    if reason := gpu_torch.available():
        report.raw["skipped"].append(f"baselines: {reason}")
    else:
        report.section("torch kernels", 40, lambda: run_torch_kernels(report))
        for name, rows in (("0.6b", 1), ("0.6b", 32), ("0.6b", 4), ("0.6b", 16), ("4b", 32), ("4b", 1)):
            report.section(f"torch.compile {name} x{rows}", 60, lambda n=name, r=rows: run_torch_model(report, n, r))
    _write(report, gpu)
    return 0


def _write(report: Report, gpu: Gpu) -> None:
    name = re.sub(r"[^a-z0-9]+", "-", gpu.name.lower()).strip("-")
    folder = Path("docs/bench") / f"{datetime.date.today().isoformat()}-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpu.json").write_text(json.dumps(report.raw, indent=1, sort_keys=True) + "\n")
    print(f"\n{gpu.name}; raw numbers: {folder / 'gpu.json'}\n")
    width = max((len(what) for what, _, _ in report.table), default=0)
    for what, value, share in report.table:
        print(f"{what:<{width}}  {value:>18}  {share}")
    for line in report.raw["skipped"]:
        print(f"skipped  {line}")


if __name__ == "__main__":
    sys.exit(main())
