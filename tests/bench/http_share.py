"""The HTTP side's part of the processor time that a server takes: ``python -m tests.bench.http_share PACK [STREAMS] [TOKENS]``.

On a quiet machine, with a pack that has a tokenizer. A true shape with random weights is made by
``python -m ferrum.graphs.models.random_weights qwen3-0.6b FOLDER --tokenizer graphs/tiny/model`` and compiled. The server's
process answers HTTP and makes texts; the engine is its child. The clients are a third process, whose time is not counted.
"""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil

from tests.bench.peers.load import MODEL_NAME, Load, drive

ROOT = Path(__file__).parents[2]
PROMPT_TOKENS = 32
VOCABULARY = 700  # ids that every tokenizer has


def seconds_of(process: psutil.Process) -> float:
    """Processor time so far."""
    times = process.cpu_times()
    return float(times.user + times.system)


def measure(port: int, server: psutil.Process, load: Load) -> None:
    drive(port, replace(load, new=2), VOCABULARY, seed=1)  # threads and caches are there, and the model's pages
    engines = server.children(recursive=True)
    before = seconds_of(server), sum(map(seconds_of, engines))
    found = drive(port, load, VOCABULARY)
    http, engine = seconds_of(server) - before[0], sum(map(seconds_of, engines)) - before[1]
    tokens = load.clients * load.new
    print(f"{load.clients} streams: {found['tokens_per_s']:.0f} tokens/s for {found['seconds']:.1f} s")
    print(f"processor time: HTTP {http:.2f} s ({1e6 * http / tokens:.0f} µs a token), engine {engine:.2f} s")
    print(f"share of HTTP: {http / (http + engine):.1%}")


def main(arguments: list[str]) -> int:
    pack = arguments[0]
    clients = int(arguments[1]) if len(arguments) > 1 else 64
    new = int(arguments[2]) if len(arguments) > 2 else 64
    flags = ["--trust", "--port", "0", "--served-model-name", MODEL_NAME, "--max-num-seqs", str(clients)]
    command = [sys.executable, "-m", "ferrum", "serve", pack, *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        found = re.search(r"http://[^/:]+:(\d+)", process.stdout.readline())
        try:
            assert found, "the server did not start"
            measure(int(found[1]), psutil.Process(process.pid), Load(clients=clients, prompt=PROMPT_TOKENS, new=new))
        finally:
            process.terminate()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
