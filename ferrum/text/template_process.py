"""Chat templates behind the wall of a process: rendered elsewhere, within bounds, started again after a template broke them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from types import TracebackType
from typing import Any, Protocol

from ferrum.errors import FerrumError
from ferrum.pack.reader import Pack
from ferrum.text.bounded_process import TEMPLATES, BoundedProcess
from ferrum.text.conversation import TEMPLATE_OPTIONS


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
    """The templates of a pack; None when it has none."""
    sources = {name: str(pack.member(member), "utf-8") for name, member in TEMPLATE_MEMBERS.items() if member in pack}
    text = pack.manifest.text
    return TemplateProcess(sources, text.special_tokens, text.template_options) if sources else None


_OVER = FerrumError(
    "template-limit",
    "the model's chat template cannot render this: it takes too much time or memory",
    "messages",
    "shorten the conversation, or use another template",
)


class TemplateProcess:
    """``sources``: templates by name; "tool_use" is taken when there are tools, else "default". Safe to use from several threads.

    ``options``: those of ``TEMPLATE_OPTIONS`` that the templates look at, where that is known. The process is started when
    it is first asked and lives until ``close``, or until a template breaks its bounds: the next conversation gets a new one.
    """

    def __init__(
        self, sources: Mapping[str, str], special_tokens: Mapping[str, str] | None = None, options: Sequence[str] | None = None
    ) -> None:
        first = {"templates": dict(sources), "special_tokens": dict(special_tokens or {})}
        self.source = "\n".join(sources.values())
        self._options = options
        self._process = BoundedProcess(TEMPLATES, first, _OVER)

    @cached_property
    def variables(self) -> frozenset[str]:
        """Names that the templates look at. Blocks. Raises FerrumError for a template that is not valid."""
        return frozenset(self._process.start()["variables"])

    def takes(self, option: str) -> bool:
        """Whether a template looks at the variable ``option``. Raises FerrumError for a template that is not valid."""
        known = self._options is not None and option in TEMPLATE_OPTIONS
        return option in (self._options or ()) if known else option in self.variables

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        options: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt's text, as ``ChatTemplate.render`` makes it. Blocks while the template runs: at most a second, or more for
        long conversations. Raises FerrumError: what that raises, a template that is not valid, and template-limit beyond the
        bounds."""
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
