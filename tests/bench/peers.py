"""ferrum beside llama.cpp on one machine, in turn, on the same random weights: ``make bench-peers``.

llama.cpp is built from the source distribution of llama-cpp-python. Each cell is measured A B A B; the table prints the
ratio of medians, and every raw sample goes to ``docs/bench/<date>-<machine>/``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ferrum.graphs.models.random_weights import SHAPES, write_model
from tests.bench.gguf_model import write_gguf

WORK = Path("build/peers")
LLAMA_PACKAGE = "llama-cpp-python==0.3.36"
# ferrum's format beside llama.cpp's of the nearest size
FORMATS = {"none": "BF16", "int8": "Q8_0", "int4-g32": "Q4_0"}


@dataclass(frozen=True)
class Case:
    """Prompt and new tokens of one sequence, and how many sequences run at once."""

    prompt: int
    new: int
    sequences: int = 1

    @property
    def name(self) -> str:
        return f"prefill {self.prompt}" if self.new <= 1 else f"decode x{self.sequences}"


CASES = (Case(16, 64), Case(16, 48, 4), Case(16, 48, 16), Case(128, 1), Case(512, 1))


def run(command: list[str | Path], **options: Any) -> str:
    return subprocess.run([str(c) for c in command], check=True, capture_output=True, text=True, **options).stdout


def build_llama(work: Path) -> Path:
    """The folder of llama.cpp's programs, built when it is not there."""
    programs = work / "llama-build" / "bin"
    if (programs / "llama-batched-bench").exists():
        return programs
    run([sys.executable, "-m", "pip", "install", "-q", "scikit-build-core", "cmake", "ninja", "gguf"])
    run(
        [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "--no-binary",
            ":all:",
            "--no-build-isolation",
            "-d",
            work,
            LLAMA_PACKAGE,
        ]
    )
    archive = next(work.glob("llama_cpp_python-*.tar.gz"))
    with tarfile.open(archive) as tar:
        tar.extractall(work, filter="data")
    source = next(work.glob("llama_cpp_python-*/vendor/llama.cpp"))
    flags = ["-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DLLAMA_CURL=OFF", "-DLLAMA_BUILD_TESTS=OFF"]
    run(["cmake", "-S", source, "-B", work / "llama-build", *flags])
    targets = ["llama-bench", "llama-batched-bench", "llama-server", "llama-quantize"]
    run(["cmake", "--build", work / "llama-build", "-j", str(os.cpu_count()), "--target", *targets])
    return programs


def prepare(shape: str, quant: str, programs: Path, work: Path) -> tuple[Path, Path]:
    """(pack, GGUF) of the same random weights; made once."""
    folder, bf16 = work / shape, work / f"{shape}.bf16.gguf"
    if not (folder / "model.safetensors").exists():
        write_model(folder, SHAPES[shape])
    pack = work / f"{shape}.{quant}.fpk"
    if not pack.exists():
        run([sys.executable, "-m", "ferrum", "compile", folder, "--quant", quant, "--max-model-len", "16384", "-o", pack])
    if not bf16.exists():
        write_gguf(folder, bf16)
    kind = FORMATS[quant]
    peer = bf16 if kind == "BF16" else work / f"{shape}.{kind}.gguf"
    if not peer.exists():
        run([programs / "llama-quantize", bf16, peer, kind])
    return pack, peer


def ours(pack: Path, case: Case, threads: int) -> dict[str, Any]:
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "ferrum",
        "bench",
        pack,
        "--rounds",
        "1",
        "--output",
        "json",
        "--threads",
        str(threads),
    ]
    command += ["--prompt-tokens", str(case.prompt), "--max-tokens", str(max(2, case.new)), "--concurrency", str(case.sequences)]
    result: dict[str, Any] = json.loads(run(command))
    return {"tokens_per_s": result["prefill_tokens_per_s" if case.new <= 1 else "decode_tokens_per_s"], "roofs": result["roofs"]}


def theirs(model: Path, case: Case, threads: int, programs: Path) -> dict[str, Any]:
    if case.sequences == 1:
        command = [programs / "llama-bench", "-m", model, "-t", str(threads), "-r", "1", "-o", "json"]
        command += ["-p", str(case.prompt), "-n", "0"] if case.new <= 1 else ["-p", "0", "-n", str(case.new)]
        return {"tokens_per_s": json.loads(run(command))[0]["avg_ts"]}
    size = str(case.sequences * (case.prompt + case.new))
    command = [programs / "llama-batched-bench", "-m", model, "-t", str(threads), "-tb", str(threads), "-c", size]
    command += ["-npp", str(case.prompt), "-ntg", str(case.new), "-npl", str(case.sequences), "--output-format", "jsonl"]
    lines = [line for line in run(command).splitlines() if line.startswith("{")]
    return {"tokens_per_s": json.loads(lines[-1])["speed_tg"]}


def machine() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return "-".join(line.split(":")[1].split()).lower()
    return "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="qwen3-0.6b", choices=sorted(SHAPES))
    parser.add_argument("--quant", default=",".join(FORMATS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--output", type=Path, help="folder of the raw samples (default docs/bench/<date>-<machine>)")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    programs = build_llama(arguments.work)
    rows = []
    for quant in arguments.quant.split(","):
        pack, peer = prepare(arguments.shape, quant, programs, arguments.work)
        for case in CASES:
            samples: dict[str, list[dict[str, Any]]] = {"ferrum": [], "llama.cpp": []}
            for _ in range(arguments.rounds):
                samples["ferrum"].append(ours(pack, case, arguments.threads))
                samples["llama.cpp"].append(theirs(peer, case, arguments.threads, programs))
            medians = {k: statistics.median(s["tokens_per_s"] for s in v) for k, v in samples.items()}
            ratio = medians["ferrum"] / medians["llama.cpp"]
            rows.append(
                {"quant": quant, "peer": FORMATS[quant], "case": case.name, "ratio": ratio, "median": medians, "samples": samples}
            )
            figures = "  ".join(f"{name} {value:8.1f}" for name, value in medians.items())
            print(f"{quant:9} {FORMATS[quant]:5} {case.name:12} {figures}  {ratio:5.2f} x", flush=True)
    folder = arguments.output or Path("docs/bench") / f"{datetime.date.today()}-{machine()}"
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "command": "make bench-peers",
        "peer": LLAMA_PACKAGE,
        "shape": arguments.shape,
        "threads": arguments.threads,
        "rows": rows,
    }
    (folder / f"{arguments.shape}.json").write_text(json.dumps(record, indent=1))
    print(folder / f"{arguments.shape}.json")


if __name__ == "__main__":
    main()
