"""Chat templates behind the wall of a process: rendered elsewhere, within bounds, started again after a template broke them."""

from __future__ import annotations

import contextlib
import select
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol

from ferrum.errors import FerrumError
from ferrum.pack.reader import Pack
from ferrum.text.frames import parsed, read_frame, write_frame

ANSWER_SECONDS = 60.0  # processor time is bounded far below; this is for a machine that gives none


class Template(Protocol):
    """What renders conversations: ``ChatTemplate`` here, ``TemplateProcess`` elsewhere. ``source``: all of its text."""

    source: str

    def takes(self, option: str) -> bool: ...

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        options: Mapping[str, Any] | None = None,
    ) -> str: ...

    def close(self) -> None: ...


TEMPLATE_MEMBERS = {"default": "chat_template.jinja", "tool_use": "chat_template.tool_use.jinja"}


def pack_templates(pack: Pack) -> TemplateProcess | None:
    """The running templates of a pack; None when it has none. Raises FerrumError for a template that is not valid."""
    sources = {name: str(pack.member(member), "utf-8") for name, member in TEMPLATE_MEMBERS.items() if member in pack}
    return TemplateProcess(sources, pack.manifest.text.special_tokens) if sources else None


class TemplateProcess:
    """``sources``: templates by name; "tool_use" is taken when there are tools, else "default". Safe to use from several threads.

    The process is started at once and lives until ``close``, or until a template breaks its bounds: the next conversation gets
    a new one. Raises FerrumError for a template that is not valid.
    """

    def __init__(self, sources: Mapping[str, str], special_tokens: Mapping[str, str] | None = None) -> None:
        self._first = {"templates": dict(sources), "special_tokens": dict(special_tokens or {})}
        self.source = "\n".join(sources.values())
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        with self._lock:
            self.variables = frozenset(self._start()["variables"])

    def takes(self, option: str) -> bool:
        """Whether a template looks at the variable ``option``."""
        return option in self.variables

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        options: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt's text, as ``ChatTemplate.render`` makes it. Blocks while the template runs: at most a second, or more for
        long conversations. Raises FerrumError: what that raises, and template-limit beyond the bounds."""
        request = {
            "messages": list(messages),
            "tools": list(tools) if tools else None,
            "add_generation_prompt": add_generation_prompt,
            "options": dict(options or {}),
        }
        with self._lock:
            if self._child is None or self._child.poll() is not None:
                self._start()
            return str(self._ask(request)["text"])

    def close(self) -> None:
        """End the process; safe to call twice. A later ``render`` starts another."""
        with self._lock:
            self._end()

    def __enter__(self) -> TemplateProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _start(self) -> dict[str, Any]:
        self._end()
        pipe = subprocess.PIPE
        command = [sys.executable, "-m", "ferrum.text.template_worker"]
        self._child = subprocess.Popen(command, stdin=pipe, stdout=pipe, process_group=0)
        return self._ask(self._first)

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        child = self._child
        assert child is not None and child.stdin is not None and child.stdout is not None
        frame = None
        with contextlib.suppress(BrokenPipeError):
            write_frame(child.stdin, request)
            answered = select.poll()  # not select, which knows the first 1,024 descriptors only
            answered.register(child.stdout, select.POLLIN)
            if answered.poll(ANSWER_SECONDS * 1000):
                frame = read_frame(child.stdout)
        if frame is None:
            self._end()
            what = "the model's chat template cannot render this: it takes too much time or memory"
            raise FerrumError("template-limit", what, "messages", "shorten the conversation, or use another template")
        answer: dict[str, Any] = parsed(frame)
        if "error" in answer:
            code, what, where, next_step = answer["error"]
            if code == "template-limit":
                self._end()  # the worker is about to end itself, and may still look alive to the next conversation
            raise FerrumError(code, what, where, next_step)
        return answer

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        child.kill()
        child.wait()
        for stream in (child.stdin, child.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
