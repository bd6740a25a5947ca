"""Messages to a prompt, through a chat template that came with a model, as transformers' ``apply_chat_template`` renders it.

Templates come from a pack, never from a request. This is what runs in the process of ``template_worker``; everybody else
uses ``template_process``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

import jinja2
from jinja2 import meta

from ferrum.errors import FerrumError, one_line
from ferrum.text.conversation import TEMPLATE_OPTIONS, Message, forms, probe_form
from ferrum.text.template_sandbox import TemplateRefusal, TemplateSandbox

MAX_SOURCE = 512 * 1024
# Variables for which templates want today's date, as their makers fill them in. Without one, some show a day of their own
# release for ever, and some fail.
DATES = {"date_string": "%d %b %Y", "datetime": "%b %d %Y"}
FUNCTIONS = "functions"  # the same for declared functions as the text of a JSON list


class ChatTemplate:
    """A compiled template. ``special_tokens``: ``bos_token`` … by name, as templates call them. Safe to use from several threads.

    Raises FerrumError for a template that is not valid.
    """

    def __init__(self, source: str, *, special_tokens: Mapping[str, str] | None = None) -> None:
        if len(source) > MAX_SOURCE:
            raise _bad_template(f"it has more than {MAX_SOURCE} characters")
        self._special = {k: v for k, v in (special_tokens or {}).items() if v}
        if not all(name.endswith("_token") for name in self._special):
            raise ValueError("names of special tokens end with _token")
        self.source = source
        environment = TemplateSandbox()
        try:
            parsed = environment.parse(source)
            self.variables = frozenset(meta.find_undeclared_variables(parsed))
            self._template = environment.from_string(parsed)
        except jinja2.TemplateSyntaxError as error:
            raise _bad_template(f"line {error.lineno}: {error.message}") from None
        except Exception as error:
            raise _bad_template(str(error)) from None
        self.form = probe_form(self._probe, developer=re.search(r"['\"]developer['\"]", source) is not None)

    def takes(self, option: str) -> bool:
        """Whether the template looks at an option of ``TEMPLATE_OPTIONS``."""
        return option in self.variables

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        options: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt's text. ``messages`` and ``tools`` as in OpenAI's chat API.

        Raises FerrumError: no messages, an option that is not in ``TEMPLATE_OPTIONS``, what the template itself refuses, or too
        much memory.
        """
        options = options or {}
        if not options.keys() <= TEMPLATE_OPTIONS:
            name = sorted(options.keys() - TEMPLATE_OPTIONS)[0]
            raise FerrumError("unknown-template-option", f"{name} is not an option of chat templates", "chat_template_kwargs")
        if not messages:
            raise FerrumError("no-messages", "there must be at least one message", "messages")
        first: FerrumError | None = None
        for shaped in forms(messages, self.form):
            try:
                return self._render(shaped, tools, add_generation_prompt, options)
            except FerrumError as error:
                if error.code == "template-limit":
                    raise
                first = first or error
        assert first is not None
        raise first

    def close(self) -> None:
        """Nothing to end: it runs in the caller's process."""

    def _render(self, messages: list[dict[str, Any]], tools: Any, generate: bool, options: Mapping[str, Any]) -> str:
        try:
            return self._template.render(
                **self._special,
                **self._filled_in(tools),
                **options,
                messages=messages,
                tools=[dict(t) for t in tools] if tools else None,
                documents=None,
                add_generation_prompt=generate,
            )
        except TemplateRefusal as error:
            raise _refused("template-refused", f"the model's chat template refuses this: {one_line(str(error), 200)}") from None
        except (RecursionError, MemoryError):
            raise _refused("template-limit", "the model's chat template cannot render this: it takes too much memory") from None
        except Exception as error:  # whatever jinja2 and the functions that a template calls may raise
            raise _refused("template-failed", f"the model's chat template fails on this: {one_line(str(error), 120)}") from None

    def _filled_in(self, tools: Any) -> dict[str, str]:
        """What makers of templates fill in beside the conversation, and transformers does not."""
        made = {name: date.today().strftime(form) for name, form in DATES.items() if name in self.variables}
        if FUNCTIONS in self.variables:
            made[FUNCTIONS] = json.dumps([tool.get("function", tool) for tool in tools or ()], ensure_ascii=False, indent=4)
        return made

    def _probe(self, messages: list[dict[str, Any]]) -> str | None:
        try:
            return self._render(messages, None, False, {})
        except FerrumError:
            return None


def _bad_template(why: str) -> FerrumError:
    return FerrumError("bad-chat-template", f"the chat template is not valid: {why}", "chat_template.jinja")


def _refused(code: str, what: str) -> FerrumError:
    return FerrumError(code, what, "messages")
