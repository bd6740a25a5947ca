"""``make demo``: compile the built-in model for this CPU, ask it, serve it, and say where the pack is and how fast it ran."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ferrum import env
from ferrum.cli.output import size
from ferrum.cli.progress import stage_progress

QUESTIONS = (
    "What is 17 + 25?",
    "Subtract 15 from 79.",
    "Sort these numbers: 74, 60, 6, 84",
    'Reverse "lamp".',
    "What is the capital of Spain?",
    "Felix, 72, lives in Rome. Give name, age and city as JSON.",
)
REMEMBER = ("Remember the word maple.", "What is 30 + 12?", "Tell me the word.")
STREAMED = "What is 40 + 2?"
START_SECONDS = 60


def main() -> int:
    if not env.get("FERRUM_HOME"):
        env.put("FERRUM_HOME", str(Path("build/home").absolute()))
    started = time.monotonic()
    pack = compile_tiny()
    ask(pack)
    with server(pack) as port:
        stream(port)
    speed(pack)
    print(f"\npack   {pack} ({size(pack.stat().st_size)})")
    # the record that this pack was built here is in the demo's own home folder
    home = os.path.relpath(env.home())
    print(f"demo   {time.monotonic() - started:.1f} s in all; go on with: .venv/bin/ferrum run tiny --home {home}")
    return 0


def compile_tiny() -> Path:
    from ferrum.store import resolve_pack

    started = time.monotonic()
    with stage_progress() as progress:
        pack = resolve_pack("tiny", on_stage=progress)
    print(f"compiled tiny for this CPU in {time.monotonic() - started:.1f} s (a second run finds the pack)\n")
    return pack


def ask(pack: Path) -> None:
    from ferrum.llm import LLM, SamplingParams

    greedy = SamplingParams(temperature=0.0, max_tokens=48)
    with LLM(pack) as llm:
        for question in QUESTIONS:
            answer = llm.chat([{"role": "user", "content": question}], greedy).text
            print(f"  {question}  →  {answer.strip()}")
        said = []
        for line in REMEMBER:
            said.append({"role": "user", "content": line})
            said.append({"role": "assistant", "content": llm.chat(said, greedy).text.strip()})
        print("  " + "  ".join(f"{line['content']}{'  →' if line['role'] == 'user' else ';'}" for line in said).rstrip(";"))


@contextlib.contextmanager
def server(pack: Path) -> Iterator[int]:
    """``ferrum serve`` on a free port of this machine; ended with SIGTERM."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "ferrum", "serve", str(pack), "--port", str(port)], stdout=subprocess.DEVNULL
    )
    try:
        while not is_ready(port):
            if process.poll() is not None or time.monotonic() - started > START_SECONDS:
                raise SystemExit("error: the server did not start · ferrum serve · run it by hand to see why")
            time.sleep(0.02)
        print(f"\nserved on http://127.0.0.1:{port}/v1, ready after {time.monotonic() - started:.1f} s")
        yield port
    finally:
        process.terminate()
        process.wait(30)


def is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/ready")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def stream(port: int) -> None:
    """One chat through the unmodified OpenAI client, streamed."""
    from openai import OpenAI

    client: Any = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")
    model = client.models.list().data[0].id
    messages = [{"role": "user", "content": STREAMED}]
    print(f"  {STREAMED}  →  ", end="")
    for chunk in client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=48, stream=True):
        if chunk.choices:
            print(chunk.choices[0].delta.content or "", end="", flush=True)
    print("  (streamed through the openai client)")


def speed(pack: Path) -> None:
    from ferrum.cli.main import main as ferrum

    print()
    ferrum(["bench", str(pack), "--rounds", "3", "--prompt-tokens", "128", "--max-tokens", "64"])


if __name__ == "__main__":
    sys.exit(main())
