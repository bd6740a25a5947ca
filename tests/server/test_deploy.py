"""What docs/deploy names exists: flags, variables, metrics, keys."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from ferrum import env
from ferrum.cli.main import build_parser
from ferrum.server.keys import read_keys
from ferrum.server.metrics import HELP

FOLDER = Path(__file__).parents[2] / "docs" / "deploy"
HISTOGRAM = re.compile(r"_(bucket|sum|count)$")


def commands() -> dict[str, list[str]]:
    """The command line of each file, after ``ferrum``."""
    docker = (FOLDER / "Dockerfile").read_text()
    unit = (FOLDER / "ferrum.service").read_text()
    compose = yaml.safe_load((FOLDER / "compose.yaml").read_text())
    found = re.search(r"^CMD (\[.*\])$", docker, re.M)
    start = re.search(r"^ExecStart=(.*)$", unit, re.M)
    assert found and start
    return {
        "Dockerfile": json.loads(found[1]),
        "ferrum.service": shlex.split(start[1])[1:],
        "compose.yaml": compose["services"]["ferrum"]["command"],
    }


@pytest.mark.parametrize("name", ["Dockerfile", "ferrum.service", "compose.yaml"])
def test_commands_are_understood(name: str) -> None:
    parser, _ = build_parser("serve")
    args = parser.parse_args(commands()[name])
    assert args.verb == "serve" and args.model.endswith(".fpk") and args.trust


def test_the_drain_is_waited_for() -> None:
    unit = (FOLDER / "ferrum.service").read_text()
    stop, drain = re.search(r"TimeoutStopSec=(\d+)", unit), re.search(r"--drain-seconds (\d+)", unit)
    compose = yaml.safe_load((FOLDER / "compose.yaml").read_text())
    assert stop and drain and int(stop[1]) > int(drain[1])
    assert compose["services"]["ferrum"]["stop_grace_period"] == "35s"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze on this machine")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    """With a program that is there in the place of ferrum."""
    unit = tmp_path / "ferrum.service"
    unit.write_text((FOLDER / "ferrum.service").read_text().replace("/opt/ferrum/bin/ferrum", sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60)
    about_it = [line for line in done.stderr.splitlines() if "ferrum" in line]
    assert done.returncode == 0 and not about_it, done.stderr
    told = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=40", str(unit)], capture_output=True, text=True, timeout=60
    )
    assert told.returncode == 0, told.stdout[-500:]


def test_variables_and_flags_in_texts_exist() -> None:
    _, verbs = build_parser()
    flags = {s for p in verbs.values() for a in p._actions for s in a.option_strings}
    known = {v.name for v in env.VARIABLES} | {"FERRUM_PACK"}  # the last is compose's own
    for path in FOLDER.iterdir():
        text = path.read_text()
        assert set(re.findall(r"FERRUM_[A-Z_]+", text)) <= known, path
        if path.suffix == ".md":
            assert set(re.findall(r"`(--[a-z-]+)", text)) <= flags, path
    assert {p.name for p in FOLDER.iterdir()} - {"README.md"} == set(
        re.findall(r"^\| `([^`]+)`", (FOLDER / "README.md").read_text(), re.M)
    )


def test_the_dashboard_shows_metrics_that_there_are() -> None:
    text = (FOLDER / "grafana.json").read_text()
    board = json.loads(text)
    named = {HISTOGRAM.sub("", name) for name in re.findall(r"ferrum_[a-z_]+", text)}
    assert named <= set(HELP) and len(named) > 15
    assert len({p["id"] for p in board["panels"]}) == len(board["panels"])
    assert all(t["expr"].count("(") == t["expr"].count(")") for p in board["panels"] for t in p["targets"])


def test_the_example_of_keys_is_read() -> None:
    keys = read_keys(FOLDER / "keys.toml")
    tables = tomllib.loads((FOLDER / "keys.toml").read_text())
    assert [k.name for k in keys] == list(tables) and keys[1].tokens_per_minute == 200_000
