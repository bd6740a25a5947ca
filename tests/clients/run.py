"""``make clients``: an environment for each client, its program against two servers, and the table in docs/clients.md."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from tests.clients.clients import CHECKS, CLIENTS, PROGRAMS, Client, stamp
from tests.clients.script import scripted
from tests.server.harness import running

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "clients"
PAGE = ROOT / "docs" / "clients.md"
PROGRAM_SECONDS = 400
INSTALL_SECONDS = 1800


@contextmanager
def tiny_server() -> Iterator[str]:
    """``ferrum serve tiny`` on a free port."""
    command = [sys.executable, "-m", "ferrum", "serve", "tiny", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        found = re.search(r"http://[^/]+", process.stdout.readline())
        try:
            assert found, "the server did not start"
            yield found[0]
        finally:
            process.terminate()


def python_of(client: Client) -> Path:
    if client.packages == ("openai",):
        return Path(sys.executable)  # a part of the development environment
    return BUILD / client.environment / "bin" / "python"


def install(client: Client) -> None:
    """Make the client's environment unless it is there. torch is never a part of one."""
    folder = BUILD / client.environment
    if client.is_npm:
        folder.mkdir(parents=True, exist_ok=True)
        names = sorted({p for c in CLIENTS if c.is_npm for p in c.packages})
        if not all((folder / "node_modules" / name).is_dir() for name in names):
            subprocess.run(["npm", "install", "--no-audit", "--no-fund", *names], cwd=folder, check=True, timeout=INSTALL_SECONDS)
        for program in PROGRAMS.glob("*.mjs"):
            (folder / program.name).write_bytes(program.read_bytes())  # modules are found beside node_modules only
    elif not python_of(client).exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        folder.joinpath("no-torch.txt").write_text("torch<0\n")
        pip = [str(folder / "bin" / "pip"), "install", "-q", "--disable-pip-version-check", "-c", str(folder / "no-torch.txt")]
        subprocess.run([*pip, *client.packages], check=True, timeout=INSTALL_SECONDS)


def version(client: Client) -> str:
    if client.is_npm:
        package = BUILD / "npm" / "node_modules" / client.packages[0] / "package.json"
        return str(json.loads(package.read_text())["version"])
    name = re.split(r"[=\[]", client.packages[0])[0]
    if python_of(client) == Path(sys.executable):
        return importlib.metadata.version(name)
    code = f"import importlib.metadata as m; print(m.version({name!r}))"
    return subprocess.run([str(python_of(client)), "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def try_client(client: Client, tiny: str, other: str) -> list[dict[str, object]]:
    """What its program found, check by check; one failed check when it found nothing."""
    program = BUILD / "npm" / client.program if client.is_npm else PROGRAMS / client.program
    command = ["node" if client.is_npm else str(python_of(client)), str(program)]
    env = {**os.environ, "FERRUM_TINY": tiny, "FERRUM_SCRIPTED": other, "NO_PROXY": "127.0.0.1", "PYTHONWARNINGS": "ignore"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=PROGRAM_SECONDS)
    except subprocess.TimeoutExpired:
        return [{"check": "chat", "ok": False, "note": "took too long"}]
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"check"')]
    return found or [{"check": "chat", "ok": False, "note": " ".join(done.stderr.split())[-300:]}]


def page(rows: list[tuple[Client, str, list[dict[str, object]]]]) -> str:
    """docs/clients.md."""
    day = datetime.now(UTC).strftime("%Y-%m-%d")
    lines = [
        "# Clients",
        "",
        "Made by `make clients`, which installs each client as it is published and runs a program with it: chat and streams",
        "against `ferrum serve tiny`, tools and structured output against a server whose model is a script, since `tiny` is too",
        "small for them.",
        f"Tried on {day}; stamp `{stamp()}`. Embeddings are tried by the tests: `tiny` makes none.",
        "",
        "| client | version | " + " | ".join(CHECKS) + " |",
        "|---|---|" + "---|" * len(CHECKS),
    ]
    notes = []
    for client, number, found in rows:
        cells = []
        for name in CHECKS:
            of = [f for f in found if str(f["check"]).split(":")[0] == name]
            good = sum(bool(f["ok"]) for f in of)
            cells.append("–" if not of else "yes" if good == len(of) else "no" if not good else f"{good} of {len(of)}")
            notes += [f"- {client.name}, {f['check']}: {f['note']}" for f in of if not f["ok"]]
        lines.append(f"| {client.name} | {number} | " + " | ".join(cells) + " |")
    lines += ["", "– : the client has no such thing, or it is not a part of its program."]
    if notes:
        lines += ["", "## What does not work", "", *notes]
    lines += ["", "## Setting them up", "", "The lines that the programs run, with the address that `ferrum serve` has."]
    for client in CLIENTS:
        language = "js" if client.is_npm else "python"
        lines += ["", f"### {client.name}", "", f"```{language}", client.setup(), "```"]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="only these clients; nothing is written")
    names = parser.parse_args().names
    rows = []
    with tiny_server() as tiny, running(scripted()) as other:
        for client in CLIENTS:
            if names and client.name not in names:
                continue
            try:
                install(client)
                row = client, version(client), try_client(client, tiny, other.url)
            except (subprocess.CalledProcessError, subprocess.TimeoutExpired, OSError) as error:
                row = client, "–", [{"check": "chat", "ok": False, "note": f"cannot be installed: {type(error).__name__}"}]
            rows.append(row)
            for found in row[2]:
                told = "ok" if found["ok"] else f"FAILED {found['note']}"
                print(f"{client.name} {row[1]}: {found['check']} {told}", flush=True)
    if not names:
        PAGE.write_text(page(rows), encoding="utf-8")
        print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
