"""Processes that are started before they are needed."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from ferrum.text import bounded_process
from ferrum.text.bounded_process import TEMPLATES, make_ready
from ferrum.text.template_process import TemplateProcess

MESSAGES = [{"role": "user", "content": "hello"}]
SOURCES = {"default": "{{ messages[0].content }}!"}


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Every process that is started, in order."""
    children: list[subprocess.Popen[bytes]] = []
    spawn = bounded_process._spawn

    def noted(module: str) -> subprocess.Popen[bytes]:
        children.append(spawn(module))
        return children[-1]

    monkeypatch.setattr(bounded_process, "_spawn", noted)
    monkeypatch.setattr(bounded_process, "_ready", {})
    yield children
    for child in children:
        child.kill()
        child.wait()
        for stream in (child.stdin, child.stdout):
            if stream is not None:
                stream.close()


def test_the_next_one_that_asks_takes_the_process_that_is_ready(started: list[subprocess.Popen[bytes]]) -> None:
    make_ready(TEMPLATES)
    make_ready(TEMPLATES)
    assert len(started) == 1
    with TemplateProcess(SOURCES) as first, TemplateProcess({"default": "other"}) as second:
        assert first.render(MESSAGES) == "hello!"
        assert len(started) == 1
        assert second.render(MESSAGES) == "other"
        assert len(started) == 2


def test_a_ready_process_that_died_is_not_taken(started: list[subprocess.Popen[bytes]]) -> None:
    make_ready(TEMPLATES)
    started[0].kill()
    started[0].wait()
    with TemplateProcess(SOURCES) as template:
        assert template.render(MESSAGES) == "hello!"
    assert len(started) == 2
    assert all(stream is not None and stream.closed for stream in (started[0].stdin, started[0].stdout))


def test_a_ready_process_that_nobody_takes_ends_with_its_input(started: list[subprocess.Popen[bytes]]) -> None:
    make_ready(TEMPLATES)
    stdin = started[0].stdin
    assert stdin is not None
    stdin.close()
    assert started[0].wait(20) == 0


def test_where_no_process_can_be_started_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(module: str) -> subprocess.Popen[bytes]:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(bounded_process, "_ready", {})
    monkeypatch.setattr(bounded_process, "_spawn", refused)
    make_ready(TEMPLATES)
    assert not bounded_process._ready
