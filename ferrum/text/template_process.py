"""Chat templates behind the wall of a process: rendered elsewhere, within bounds, started again after a template broke them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol

from ferrum.errors import FerrumError
from ferrum.pack.reader import Pack
from ferrum.text.bounded_process import BoundedProcess


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


_OVER = FerrumError(
    "template-limit",
    "the model's chat template cannot render this: it takes too much time or memory",
    "messages",
    "shorten the conversation, or use another template",
)


class TemplateProcess:
    """``sources``: templates by name; "tool_use" is taken when there are tools, else "default". Safe to use from several threads.

    The process is started at once and lives until ``close``, or until a template breaks its bounds: the next conversation gets
    a new one. Raises FerrumError for a template that is not valid.
    """

    def __init__(self, sources: Mapping[str, str], special_tokens: Mapping[str, str] | None = None) -> None:
        first = {"templates": dict(sources), "special_tokens": dict(special_tokens or {})}
        self.source = "\n".join(sources.values())
        self._process = BoundedProcess("ferrum.text.template_worker", first, _OVER)
        self.variables = frozenset(self._process.start()["variables"])

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
        return str(self._process.ask(request)["text"])

    def close(self) -> None:
        """End the process; safe to call twice. A later ``render`` starts another."""
        self._process.close()

    def __enter__(self) -> TemplateProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
