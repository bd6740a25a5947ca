"""Running a compiler of this machine on one source: what it makes, or the error with all that is needed to repeat it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ferrum.errors import FerrumError

Ran = subprocess.CompletedProcess[str]


def run(command: Sequence[str], folder: Path) -> Ran:
    """``command`` in ``folder``: messages in English, and the same bytes from the same source on any day."""
    own = {"SOURCE_DATE_EPOCH": "315532800", "LC_ALL": "C", "ZIG_LOCAL_CACHE_DIR": str(folder / "zig-cache")}
    # once in some thousand times zig does not find a file of its own in a new cache; the second time it does
    for _ in range(2):
        ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, env={**os.environ, **own}, check=False)
        if ran.returncode == 0 or "error opening 'zig-cache/" not in ran.stderr:
            break
    return ran


def answer(command: Sequence[str]) -> str:
    """What a compiler says of itself; empty where there is none, or none that works."""
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return ran.stdout.strip() if ran.returncode == 0 else ""


def version_line(*command: str) -> str:
    """The first line of ``command --version``; empty where that fails."""
    return answer([*command, "--version"]).partition("\n")[0].strip()


def find_zig() -> tuple[tuple[str, ...], str]:
    """The command and version of the compiler inside the ``ziglang`` package; empty without the package."""
    if importlib.util.find_spec("ziglang") is None:
        return (), ""
    zig = (sys.executable, "-m", "ziglang")
    return (*zig, "cc"), f"zig {answer([*zig, 'version'])}"


@dataclass(frozen=True)
class SourceFile:
    """A source and the ``name`` of the file that it is compiled from; ``keep``: the folder that it stays in after a failure."""

    text: str
    name: str
    keep: Path | None = None

    def compile(self, compiler: str, command: Sequence[str], result: str) -> bytes:
        """The file ``result`` that ``command`` makes of the source, where both lie in one folder. Raises FerrumError."""
        with tempfile.TemporaryDirectory(prefix="ferrum-compile-") as folder:
            (Path(folder) / self.name).write_text(self.text, encoding="utf-8")
            ran = run(command, Path(folder))
            if ran.returncode == 0:
                return (Path(folder) / result).read_bytes()
        raise self.failure(compiler, ran.stderr or ran.stdout, command)

    def failure(self, compiler: str, log: str, command: Sequence[str]) -> FerrumError:
        """Save the source and what the compiler said; the error names its first complaint, the file and how to repeat it."""
        folder = self.keep or Path(tempfile.mkdtemp(prefix="ferrum-failed-"))
        folder.mkdir(parents=True, exist_ok=True)
        saved = folder / self.name
        saved.write_text(self.text, encoding="utf-8")
        (folder / "stderr.txt").write_text(log, encoding="utf-8")
        repeat = " ".join(str(saved) if part == self.name else part for part in command)
        return FerrumError("toolchain-failed", f"{compiler} failed: {complaint(log)}", str(saved), f"repeat with: {repeat}")


def complaint(log: str) -> str:
    """The first error among a compiler's messages."""
    lines = log.splitlines()
    return next((line for line in lines if "error" in line), lines[0] if lines else "no output")
