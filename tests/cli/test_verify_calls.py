"""``ferrum verify`` repeats the round trip of tool calls: template → text → format."""

from __future__ import annotations

from pathlib import Path

from ferrum.cli.verify import check_calls
from ferrum.pack.verify import VerifyReport
from tests.engine.null_pack import write_null_pack


def checks(path: Path, *, trust: bool = True) -> list[tuple[str, str]]:
    report = VerifyReport(path)
    check_calls(report, trust=trust)
    return [(check.state, check.detail) for check in report.checks]


def test_the_format_must_read_what_the_template_writes(tmp_path: Path) -> None:
    ((state, detail),) = checks(write_null_pack(tmp_path / "a.fpk"))
    assert state == "ok" and "does not show" in detail
    ((state, detail),) = checks(write_null_pack(tmp_path / "b.fpk", tool_format="hermes"))
    assert state == "failed" and "not as hermes" in detail
    ((state, detail),) = checks(write_null_pack(tmp_path / "c.fpk"), trust=False)
    assert state == "skipped"
