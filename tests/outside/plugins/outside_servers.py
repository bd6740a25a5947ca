"""``ferrum serve`` for other servers' tests: one process for each configuration that they ask for, kept while it is used."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec
from outside_model import write_model

from ferrum.codegen.text import read_text
from ferrum.pack.reader import open_pack
from ferrum.pack.writer import PackWriter
from ferrum.text.template_process import TEMPLATE_MEMBERS

ROOT = Path(__file__).parents[3]
KEPT = 3


@dataclass(frozen=True)
class Asked:
    """``template``: a chat template's source; empty is the model's own. ``flags``: of ``ferrum serve``. ``ends``: the model ends
    by itself."""

    template: str = ""
    flags: tuple[str, ...] = ()
    ends: bool = False


class Servers:
    """``folder``: where models and packs are kept from run to run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: dict[Asked, tuple[subprocess.Popen[str], int]] = {}

    def port(self, asked: Asked) -> int:
        if asked not in self._running:
            while len(self._running) >= KEPT:
                self._end(next(iter(self._running)))
            self._running[asked] = self._start(asked)
        self._running[asked] = self._running.pop(asked)  # the last used is the last in line
        return self._running[asked][1]

    def close(self) -> None:
        for asked in list(self._running):
            self._end(asked)

    def pack(self, template: str, *, ends: bool) -> Path:
        """The model is compiled once; another template is written into a copy of its pack."""
        base = self._folder / ("ends" if ends else "goes-on")
        if not base.with_suffix(".fpk").exists():
            write_model(base, ends=ends)
            command = [sys.executable, "-m", "ferrum", "compile", str(base), "-o", str(base.with_suffix(".fpk"))]
            subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True, env=_environment())
        if not template:
            return base.with_suffix(".fpk")
        pack = self._folder / f"{base.name}-{hashlib.sha256(template.encode()).hexdigest()[:12]}.fpk"
        if not pack.exists():
            with_template(base, template, pack)
        return pack

    def _start(self, asked: Asked) -> tuple[subprocess.Popen[str], int]:
        command = [
            sys.executable,
            "-m",
            "ferrum",
            "serve",
            str(self.pack(asked.template, ends=asked.ends)),
            "--trust",
            "--port",
            "0",
            *asked.flags,
        ]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=_environment())
        assert process.stdout is not None
        found = re.search(r"http://[^/:]+:(\d+)", process.stdout.readline())
        if not found:
            process.kill()
            raise RuntimeError(f"the server did not start: {asked.flags}")
        return process, int(found[1])

    def _end(self, asked: Asked) -> None:
        process, _ = self._running.pop(asked)
        process.terminate()
        process.wait(60)


def with_template(model: Path, template: str, target: Path) -> None:
    """``target``: the pack beside ``model``, a checkpoint, as it would be with another chat template."""
    settings = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": template}))
    text = read_text(model)
    with open_pack(model.with_suffix(".fpk"), trust=True) as pack:
        manifest = pack.manifest
        members = {record.name: bytes(pack.member(record.name)) for record in manifest.members}
    members[TEMPLATE_MEMBERS["default"]] = text.templates["default"].encode()
    with PackWriter(target, manifest_room=(64 + len(manifest.tensors)) * 16384) as writer:
        for name, content in members.items():
            writer.add(name, content)
        writer.finish(msgspec.structs.replace(manifest, members=[], text=text.record), record=False)


def _environment() -> dict[str, str]:
    """Without the folders of tests in which other modules are called as ours."""
    return {**{k: v for k, v in os.environ.items() if k != "VLLM_API_KEY"}, "PYTHONPATH": str(ROOT)}
