"""The Dockerfile's steps without Docker, in a clean root that debootstrap made: ``python -m tests.server.clean_root ROOT PACK``.

``ROOT`` takes the place of the Python image, and is not changed. As root one makes it with
``debootstrap --variant=minbase --include=python3,python3-pip,python3-venv,ca-certificates trixie ROOT``. Then the server is
started there as the image would start it, and asked once. Printed are the steps, the answer, and how large what they add is when
compressed.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TREE = Path(__file__).parents[2]
DOCKERFILE = TREE / "docs" / "deploy" / "Dockerfile"
# Debian's Python leaves its packages to apt unless it is told, and has no program called python
DEBIAN = {
    "PIP_BREAK_SYSTEM_PACKAGES": "1",
    "PIP_IGNORE_INSTALLED": "1",  # nor does it say what pip would have to remove
    "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
    "HOME": "/root",
}
PORT, KEY = 18765, "a-key-of-a-test"
START_SECONDS = 120


@dataclass
class Stage:
    """One image: its folder once it was built, and what a container of it starts with."""

    name: str
    steps: list[tuple[str, str]] = field(default_factory=list)
    root: Path = Path()
    environment: dict[str, str] = field(default_factory=lambda: dict(DEBIAN))
    user: str = "root"
    entry: list[str] = field(default_factory=list)


def stages(text: str) -> list[Stage]:
    """A Dockerfile's stages with their instructions."""
    lines = re.sub(r"\\\n", " ", "\n".join(line for line in text.splitlines() if not line.startswith("#"))).splitlines()
    made: list[Stage] = []
    for line in filter(str.strip, lines):
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            made.append(Stage(rest.partition(" AS ")[2] or str(len(made))))
        else:
            made[-1].steps.append((word, rest.strip()))
    return made


def copied(source: Path, target: Path) -> None:
    """COPY: a folder's content, or a file into a folder."""
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True, ignore=ignored if source == TREE else None)
    else:
        shutil.copy(source, target)


def ignored(folder: str, names: list[str]) -> set[str]:
    """What .dockerignore leaves out of the tree."""
    rules = [r for r in (TREE / ".dockerignore").read_text().splitlines() if r and not r.startswith("#")]
    kept, anywhere = {r[1:] for r in rules if r.startswith("!")}, [r[3:] for r in rules if r.startswith("**/")]
    out = {n for n in names if any(fnmatch.fnmatch(n, r) for r in anywhere)}
    return out | (set(names) - kept if Path(folder) == TREE else set())


def inside(stage: Stage, command: list[str], **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["chroot", f"--userspec={stage.user}", str(stage.root), *command], env=stage.environment, **options)


def build(stage: Stage, others: dict[str, Stage]) -> None:
    for word, rest in stage.steps:
        print(f"{stage.name}: {word} {rest}", flush=True)
        if word == "COPY":
            origin = re.match(r"--from=(\S+) ", rest)
            source, target = rest[origin.end() if origin else 0 :].split()
            above = others[origin[1]].root if origin else TREE
            copied((above / source.lstrip("/")).resolve() if source != "." else above, stage.root / target.lstrip("/"))
        elif word == "RUN":
            if inside(stage, ["sh", "-ec", rest]).wait():
                raise SystemExit(f"failed: {rest}")
        elif word == "ENV":
            stage.environment |= dict(part.split("=", 1) for part in shlex.split(rest))
        elif word == "USER":
            stage.user = rest
        elif word in ("ENTRYPOINT", "CMD"):
            stage.entry += json.loads(rest)


def ask(path: str, body: Any = None) -> Any:
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{PORT}{path}", data, headers), timeout=20) as answer:
        return json.load(answer)


def serve(stage: Stage, pack: Path) -> None:
    """A container of the image, with the pack where its command looks for it."""
    (stage.root / "models").mkdir(exist_ok=True)
    shutil.copy(pack, stage.root / "models" / "model.fpk")
    stage.environment |= {"FERRUM_API_KEY": KEY, "FERRUM_PORT": str(PORT), "HOME": stage.environment["FERRUM_HOME"]}
    proc = str(stage.root / "proc")  # where a program looks for the processor's features, in a container as well
    subprocess.run(["mount", "-t", "proc", "proc", proc], check=True)
    process, deadline = inside(stage, stage.entry), time.monotonic() + START_SECONDS
    try:
        while True:
            try:
                print(ask("/health")["status"])
                break
            except (urllib.error.URLError, OSError):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit("the server did not start") from None
                time.sleep(0.5)
        said = ask("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8})
        print(said["choices"][0]["message"], said["usage"])
    finally:
        process.terminate()
        process.wait(60)
        subprocess.run(["umount", proc], check=True)


def compressed(root: Path) -> int:
    """Bytes of a folder as an image's layers have it."""
    command = f"tar -C {shlex.quote(str(root))} --exclude=./proc --exclude=./models --exclude=./dev -c . | gzip -6 | wc -c"
    return int(subprocess.run(command, shell=True, check=True, capture_output=True, text=True).stdout)


def main(arguments: list[str]) -> int:
    base, pack = Path(arguments[0]).absolute(), Path(arguments[1])
    if os.geteuid() != 0:
        raise SystemExit("chroot needs root")
    built: dict[str, Stage] = {}
    try:
        for stage in stages(DOCKERFILE.read_text()):
            stage.root = base.with_name(f"{base.name}-{stage.name}")
            subprocess.run(["cp", "-a", str(base), str(stage.root)], check=True)
            (stage.root / "usr/local/bin/python").symlink_to("/usr/bin/python3")
            built[stage.name] = stage
            build(stage, built)
        image = list(built.values())[-1]
        added = compressed(image.root) - compressed(base)
        print(f"the steps add {added / 1e6:.0f} MB, compressed")
        serve(image, pack)
    finally:
        for stage in built.values():
            shutil.rmtree(stage.root, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
