"""A writer that is killed leaves the old pack, or the new one, or nothing; never a half one."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ferrum.pack.atomic import AtomicFile
from ferrum.pack.reader import open_pack
from tests.pack.helpers import write_minimal_pack

# argv: path, how many pwrite, fsync and replace calls are let through before the process kills itself (0: never)
SCRIPT = """
import os, signal, sys
from pathlib import Path
import ferrum.pack.atomic
from tests.pack.helpers import MEMBERS, write_minimal_pack
ferrum.pack.atomic._BLOCK = 1 << 16
left = int(sys.argv[2])
def counted(call):
    def wrapper(*args):
        global left
        result = call(*args)
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return wrapper
os.pwrite, os.fsync, os.replace = counted(os.pwrite), counted(os.fsync), counted(os.replace)
print("ready", flush=True)
while True:
    for fill in (1, 2):
        write_minimal_pack(Path(sys.argv[1]), members={**MEMBERS, "weights": bytes([fill]) * 544, "step/selftest.json": b"{}"})
"""


def start(path: Path, calls: int) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, path, str(calls)], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    return process


def check(path: Path, old: bytes) -> None:
    if path.read_bytes() != old:
        with open_pack(path, trust=True, check="full") as pack:
            assert bytes(pack.weights) in (b"\1" * 544, b"\2" * 544)
    left = [name for name in os.listdir(path.parent) if name != path.name]
    assert len(left) <= 1 and all(name.startswith(".") and name.endswith(".tmp") for name in left)


def test_kill_after_every_call(tmp_path: Path) -> None:
    path = write_minimal_pack(tmp_path / "x.fpk")
    old = path.read_bytes()
    calls = 0
    while path.read_bytes() == old:
        calls += 1
        process = start(path, calls)
        assert process.wait(timeout=30) == -signal.SIGKILL
        check(path, old)
    assert calls >= 3 + 9 + 3  # blocks, headers, then manifest, fsync and replace
    write_minimal_pack(path)
    assert os.listdir(tmp_path) == ["x.fpk"]


def test_kill_at_random_times(tmp_path: Path) -> None:
    path = write_minimal_pack(tmp_path / "x.fpk")
    old = path.read_bytes()
    for seed in range(4):
        process = start(path, 0)
        time.sleep(random.Random(seed).uniform(0, 0.05))
        process.kill()
        process.wait(timeout=30)
        check(path, old)
    write_minimal_pack(path)
    assert os.listdir(tmp_path) == ["x.fpk"]


def test_only_files_of_dead_writers_of_this_name_are_removed(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    gone = tmp_path / f".x.fpk.{dead.pid}-0.tmp"
    kept = [tmp_path / f".y.fpk.{dead.pid}-0.tmp", tmp_path / f".x.fpk.{os.getpid()}-77.tmp", tmp_path / ".x.fpk.tmp"]
    for file in (gone, *kept):
        file.write_bytes(b"half")
    write_minimal_pack(tmp_path / "x.fpk")
    assert not gone.exists() and all(file.exists() for file in kept)


def test_a_locked_file_of_an_unknown_process_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ferrum.pack.atomic._is_alive", lambda pid: False)  # as seen from another container
    with AtomicFile(tmp_path / "x.fpk") as writing:
        write_minimal_pack(tmp_path / "x.fpk")
        assert writing.temp.exists()
        writing.append(b"second")
        writing.commit()
    assert (tmp_path / "x.fpk").read_bytes() == b"second" and os.listdir(tmp_path) == ["x.fpk"]
