"""``ferrum batch``: in order, whole, resumed, and refused before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.packs import write_pack
from tests.conftest import CommandLine


def test_a_batch(ferrum: CommandLine, tmp_path: Path) -> None:
    pack = write_pack(tmp_path / "null.fpk", device="null")
    lines = [
        {"custom_id": f"r{i}", "method": "POST", "url": "/v1/completions", "body": {"model": str(pack), "prompt": f"number {i}"}}
        for i in range(20)
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[:9]) + "nonsense\n")
    flags = ("in.jsonl", "-o", "out.jsonl", "--trust", "--served-model-name", str(pack))
    done = ferrum("batch", *flags)
    assert done.returncode == 0 and done.stdout == "out.jsonl  10 lines, 1 of them errors\n", done.stderr
    first = (tmp_path / "out.jsonl").read_text()
    answers = [json.loads(line) for line in first.splitlines()]
    assert [a["custom_id"] for a in answers] == [*(f"r{i}" for i in range(9)), None]
    assert answers[0]["response"]["body"]["choices"][0]["text"]
    with (tmp_path / "in.jsonl").open("a") as stream:
        stream.writelines(json.dumps(line) + "\n" for line in lines[9:])
    again = ferrum("batch", *flags, "--json")
    assert json.loads(again.stdout) == {"path": "out.jsonl", "total": 21, "completed": 20, "failed": 1}
    assert (tmp_path / "out.jsonl").read_text().startswith(first)
    assert ferrum("batch", "in.jsonl", "-o", "in.jsonl", "--trust").stderr.startswith("error: the output would overwrite")
    assert "cannot write" in ferrum("batch", "in.jsonl", "-o", "no/out.jsonl").stderr


def test_a_first_line_without_a_model(ferrum: CommandLine, tmp_path: Path) -> None:
    for text in ("", "[]\n", '{"body": {"model": 1}}\n'):
        (tmp_path / "in.jsonl").write_text(text)
        assert ferrum("batch", "in.jsonl", "-o", "x").stderr.startswith("error: the first line names no model")
