"""ferrum beside its peers on one machine, in turn, on the same random weights: ``make bench-peers``.

llama.cpp is built from the source distribution of llama-cpp-python; OpenVINO GenAI, torch and transformers are installed in an
environment of their own. Each case is measured A B A B. Raw samples, the table and the plots go to ``docs/bench/``.
"""

from __future__ import annotations

import argparse
import datetime
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.bench.peers.cases import FORMATS, SHAPES
from tests.bench.peers.install import CONSTRAINTS, LLAMA_PACKAGE, Peers, install
from tests.bench.peers.models import Models
from tests.bench.peers.process import run
from tests.bench.peers.record import Failure, Record
from tests.bench.peers.sections import LARGE_SECTIONS, SECTIONS, Run
from tests.bench.peers.table import markdown

WORK = Path("build/peers")
NAMED_PEERS = ("openvino-genai==", "torch==", "transformers==")


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="python -m tests.bench.peers", description=__doc__)
    add = result.add_argument
    add("--only", default="", metavar="PARTS", help=f"parts to run, of {','.join(SECTIONS)} (default: all)")
    add("--shape", default="", metavar="SHAPES", help=f"shapes, of {','.join(SHAPES)} (default: the first; --full: all)")
    add("--formats", default=",".join(FORMATS), metavar="NAMES", help=f"of {','.join(FORMATS)} (default: all)")
    add("--without", default="", metavar="PEERS", help="peers to leave out: llama.cpp, OpenVINO, torch")
    add("--rounds", type=int, default=2, help="visits of each participant (default 2: A B A B)")
    add("--full", action="store_true", help="the large shapes too, more rounds of the long cases; takes hours")
    add("--threads", type=int, default=len(os.sched_getaffinity(0)))
    add("--no-prove", action="store_true", help="compile packs without the run against the interpreter")
    add("--work", type=Path, default=WORK, help="folder of builds and models (default build/peers)")
    add("--output", type=Path, help="folder of the results (default docs/bench/<date>-<machine>)")
    add("--prepare", action="store_true", help="build, install and compile what is missing, and measure nothing")
    return result


def chosen(text: str, known: Iterable[str], default: list[str]) -> list[str]:
    names = [n.strip() for n in text.split(",") if n.strip()] or default
    known = list(known)
    if unknown := [n for n in names if n not in known]:
        sys.exit(f"unknown: {', '.join(unknown)}; there are {', '.join(known)}")
    return names


def machine_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return " ".join(line.split(":")[1].split())
    return "unknown"


def file_name(text: str) -> str:
    kept = "".join(ch if ch.isalnum() or ch == "." else "-" for ch in text.lower().replace("(r)", "").replace("@", ""))
    return "-".join(part for part in kept.split("-") if part)


def shown(words: list[str]) -> list[str]:
    """A command line without the folders of the machine it ran on."""
    hidden = {i + j for i, word in enumerate(words) for j in (0, 1) if word in ("--work", "--output")}
    return [w for i, w in enumerate(words) if i not in hidden and not w.startswith(("--work=", "--output="))]


def open_record(folder: Path, arguments: argparse.Namespace) -> Record:
    machine: dict[str, Any] = {
        "name": machine_name(),
        "threads": arguments.threads,
        "date": str(datetime.date.today()),
        "peers": [LLAMA_PACKAGE, *(p for p in CONSTRAINTS.read_text().split() if p.startswith(NAMED_PEERS))],
    }
    path = folder / "samples.json"
    record = Record.load(path) if path.exists() else Record(machine)
    record.machine = machine
    record.commands.append(" ".join(["python -m tests.bench.peers", *shown(sys.argv[1:])]))
    return record


def write(record: Record, folder: Path, peers: Peers, plots: Path | None) -> str:
    table = markdown(record)
    record.save(folder / "samples.json")
    (folder / "README.md").write_text(f"# ferrum and its peers\n\n{table}")
    if plots is not None:
        plots.mkdir(parents=True, exist_ok=True)
        run([peers.python, "-m", "tests.bench.peers.plots", folder / "samples.json", plots], PYTHONPATH=os.getcwd())
    return table


def main() -> None:
    arguments = parser().parse_args()
    sections = chosen(arguments.only, SECTIONS, list(SECTIONS))
    shapes = chosen(arguments.shape, SHAPES, list(SHAPES) if arguments.full else list(SHAPES)[:1])
    formats = tuple(chosen(arguments.formats, FORMATS, list(FORMATS)))
    without = frozenset(chosen(arguments.without, ("llama.cpp", "OpenVINO", "torch"), []))
    peers = install(arguments.work)
    folder = arguments.output or Path("docs/bench") / f"{datetime.date.today()}-{file_name(machine_name())}"
    record = open_record(folder, arguments)
    began = time.monotonic()
    if "speed" in sections:
        record.roofs.clear()  # this run measures them itself
    for shape in shapes:
        models = Models(shape, peers, prove=not arguments.no_prove)
        this = Run(peers, models, record, arguments.threads, arguments.rounds, formats, without, arguments.full)
        for name in formats:
            models.pack(FORMATS[name].quant)
            this.gguf(FORMATS[name])
        if arguments.prepare:
            continue
        models.forget()
        for section in sections if this.first else [s for s in sections if s in LARGE_SECTIONS]:
            try:
                SECTIONS[section](this)
            except Failure as error:
                print(f"{shape}: {section} failed: {error}", flush=True)
            write(record, folder, peers, None)
    if arguments.prepare:
        return
    plots = None if arguments.output else Path("docs/bench/plots")
    print(write(record, folder, peers, plots))
    print(f"{folder}  in {(time.monotonic() - began) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
