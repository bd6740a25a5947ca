"""The page of other servers' tests is made by the rules that are here, and the model for them says what it should."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ferrum.text.tokenizer import Tokenizer
from tests.outside.lists import Project, Row, section, summary
from tests.outside.plugins.outside_model import END, NEVER, TINY, likings
from tests.outside.projects import PROJECTS

PAGE = Path(__file__).parents[2] / "docs" / "outside-tests.md"


@pytest.mark.parametrize("project", PROJECTS.values(), ids=lambda p: p.name)
def test_the_page_tells_of_each_project(project: Project) -> None:
    part = re.split(r"(?m)^## ", PAGE.read_text(encoding="utf-8"))
    told = next(text for text in part if text.startswith(f"{project.name}\n"))
    passed, counted = map(int, re.search(r": (\d+) of (\d+) pass\.", told).groups())  # type: ignore[union-attr]
    assert passed >= 0.9 * counted > 20
    reasons = set(re.findall(r"(?m)^\| (?!why|-)(.*?) \|", told))
    assert reasons <= {why for _, why in project.excluded if why}
    assert len(re.findall(r"(?m)^- `", told)) == counted - passed  # each that fails by its name


def test_a_test_counts_unless_a_reason_says_why_not() -> None:
    project = Project("x", "x", "x", "x", (), "", excluded=(("b_special", ""), ("b", "why")))
    rows = [
        Row(name, project.reason(name), "passed" if name != "f::c" else "failed")
        for name in ("f::a", "f::b", "f::b_special", "f::c")
    ]
    assert [row.reason for row in rows] == ["", "why", "", ""] and summary(rows) == (2, 3)
    text = "\n".join(section(project, "1.0", rows))
    assert "x 1.0: 2 of 3 pass." in text and "- `f::c`" in text and "| why | `b` |" in text


def test_the_model_for_them_says_printable_text_and_ends_only_when_asked_to() -> None:
    tokenizer = Tokenizer((TINY / "tokenizer.json").read_bytes())
    end = tokenizer.encode(END, special=False)
    for ends in (False, True):
        liked = likings(800, ends=ends)
        said = [i for i in range(800) if liked[i] > NEVER]
        assert (end[0] in said) is ends and len(said) > 300
        assert all(tokenizer.token_bytes(i).decode().isprintable() for i in said)
