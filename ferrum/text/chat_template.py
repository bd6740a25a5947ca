"""Messages to a prompt, through the chat template that came with the model.

Renders as transformers' ``apply_chat_template`` does, under the bounds of ``template_sandbox``. A template comes from a
pack, never from a request.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from jinja2 import meta

from ferrum.errors import FerrumError, one_line
from ferrum.text.template_bounds import Budget, TemplateLimit, budget
from ferrum.text.template_sandbox import BoundedSandbox, TemplateRefusal
from ferrum.text.tokenizer import check_text

MAX_SOURCE = 512 * 1024
RENDER_SECONDS = 5.0
OPTIONS = frozenset({"enable_thinking", "reasoning_effort"})  # the only variables that a request may set
_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")

Message = Mapping[str, Any]


class ChatTemplate:
    """A compiled template. ``special_tokens``: ``bos_token`` … by name, as templates call them. Safe to use from several threads.

    Raises FerrumError for a template that is not valid.
    """

    def __init__(self, source: str, *, special_tokens: Mapping[str, str] | None = None, seconds: float = RENDER_SECONDS) -> None:
        if len(source) > MAX_SOURCE:
            raise _bad_template(f"it has more than {MAX_SOURCE} characters")
        self._special = {k: v for k, v in (special_tokens or {}).items() if v}
        if not all(name.endswith("_token") for name in self._special):
            raise ValueError("names of special tokens end with _token")
        self._seconds = seconds
        environment = BoundedSandbox()
        token = budget.set(Budget(time.monotonic() + seconds))
        try:
            self.variables = frozenset(meta.find_undeclared_variables(environment.parse(source)))
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise _bad_template(f"line {error.lineno}: {error.message}") from None
        except (jinja2.TemplateError, RecursionError, MemoryError, SyntaxError, ValueError, TypeError) as error:
            raise _bad_template(str(error)) from None
        finally:
            budget.reset(token)
        self._names_developer = "developer" in source

    def takes(self, option: str) -> bool:
        """Whether the template looks at an option of ``OPTIONS``."""
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

        Raises FerrumError: no messages, an option that is not in ``OPTIONS``, what the template itself refuses, or a bound
        that it exceeds.
        """
        options = options or {}
        if not options.keys() <= OPTIONS:
            name = sorted(options.keys() - OPTIONS)[0]
            raise FerrumError("unknown-template-option", f"{name} is not an option of chat templates", "chat_template_kwargs")
        if not messages:
            raise FerrumError("no-messages", "there must be at least one message", "messages")
        token = budget.set(Budget(time.monotonic() + self._seconds))
        try:
            return self._template.render(
                **self._special,
                **options,
                messages=[self._message(m, f"messages[{i}]") for i, m in enumerate(messages)],
                tools=[dict(t) for t in tools] if tools else None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
            )
        except FerrumError:
            raise
        except TemplateRefusal as error:
            raise _refused("template-refused", f"the model's chat template refuses this: {error}") from None
        except TemplateLimit as error:
            raise _refused("template-limit", f"the model's chat template cannot render this: {error}") from None
        except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise _refused("template-failed", f"the model's chat template fails on this: {one_line(str(error), 120)}") from None
        except (RecursionError, MemoryError):
            raise _refused("template-limit", "the model's chat template cannot render this") from None
        finally:
            budget.reset(token)

    def _message(self, message: Message, where: str) -> dict[str, Any]:
        """As templates expect it: no None, text in one string, arguments of calls as objects."""
        result = {k: v for k, v in message.items() if v is not None}
        if result.get("role") == "developer" and not self._names_developer:
            result["role"] = "system"
        if isinstance(result.get("content"), (list, tuple)):
            result["content"] = "\n".join(part["text"] for part in result["content"] if part.get("type") == "text")
        for key in ("content", "name"):
            if isinstance(result.get(key), str):
                check_text(result[key], f"{where}.{key}")
        if "tool_calls" in result:
            result["tool_calls"] = [_call(c, f"{where}.tool_calls[{i}]") for i, c in enumerate(result["tool_calls"])]
        reasoning = next((result[k] for k in _REASONING_FIELDS if k in result), None)
        if reasoning is not None:
            result = {"thinking": reasoning, **result, "reasoning_content": reasoning}
        return result


def _call(call: Mapping[str, Any], where: str) -> dict[str, Any]:
    function = dict(call["function"])
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            function["arguments"] = json.loads(arguments or "{}", parse_constant=_no_constant)
        except (ValueError, RecursionError):
            what = "the arguments of a call must be the text of a JSON object"
            raise FerrumError("invalid-arguments", what, f"{where}.function.arguments") from None
        if not isinstance(function["arguments"], dict):
            what = "the arguments of a call must be a JSON object"
            raise FerrumError("invalid-arguments", what, f"{where}.function.arguments")
    return {**call, "function": function}


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _bad_template(why: str) -> FerrumError:
    return FerrumError("bad-chat-template", f"the chat template is not valid: {why}", "chat_template.jinja")


def _refused(code: str, what: str) -> FerrumError:
    return FerrumError(code, what, "messages")
