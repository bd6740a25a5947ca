"""``ferrum stop`` ends the process of the record and no other."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from ferrum.cli.stop import running, start_time
from tests.cli.packs import write_pack
from tests.conftest import CommandLine


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FERRUM_HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "run").mkdir(parents=True)
    return tmp_path / "home"


def leave(home: Path, **record: object) -> Path:
    path = home / "run" / f"serve-{record['port']}.pid"
    path.write_text(json.dumps({"host": "127.0.0.1", **record}))
    return path


def test_stops_the_process_and_waits(home: Path, ferrum: CommandLine) -> None:
    program = (
        "import signal, sys, time\n"
        "signal.signal(15, lambda *a: (time.sleep(0.3), sys.exit(0)))\n"
        "print('on', flush=True)\n"
        "time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"on\n"
        leave(home, pid=process.pid, started=start_time(process.pid), port=8123)
        assert [s.port for s in running()] == [8123]
        assert ferrum("stop", "--port", "9").stdout == "no server is running on port 9; there is one on port 8123\n"
        done = ferrum("stop")
        assert done.stdout == f"stopped the server on port 8123 (pid {process.pid})\n"
        assert process.wait(5) == 0
    assert ferrum("stop").stdout == "no server is running\n"


def test_a_reused_number_is_left_alone(home: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        path = leave(home, pid=process.pid, started=start_time(process.pid) - 1, port=8123)
        assert running() == [] and not path.exists()
        assert process.poll() is None
        process.kill()


@pytest.mark.parametrize("text", ["", "0", "[]", "none", '{"pid": 1}', '{"pid": -5, "started": 0, "host": "", "port": 1}'])
def test_nonsense_is_removed(home: Path, text: str) -> None:
    path = home / "run" / "serve-1.pid"
    path.write_text(text)
    assert running() == [] and not path.exists()


def test_a_real_server(home: Path, ferrum: CommandLine, tmp_path: Path) -> None:
    """``serve`` leaves its record, answers, and ends when ``stop`` says so."""
    pack = write_pack(tmp_path / "null.fpk", device="null")
    command = [sys.executable, "-m", "ferrum", "serve", str(pack), "--trust", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("serving ")
        (server,) = running()
        assert server.pid == process.pid
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/health", timeout=10) as answer:
            assert answer.status == 200
        listed = ferrum("stop", "--json")
        assert [s["port"] for s in json.loads(listed.stdout)["stopped"]] == [server.port]
        assert process.wait(10) == 0
    assert running() == [] and list((home / "run").iterdir()) == []
