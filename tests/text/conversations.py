"""Conversations as OpenAI's API has them, with what `transformers` is given instead: arguments as objects."""

from __future__ import annotations

import copy
import json
from datetime import date
from typing import Any

from ferrum.text.chat_template import DATES, FUNCTIONS

Messages = list[dict[str, Any]]

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Look outside — 'now' <b>",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "Where"},
                    "days": {"type": "integer", "description": "How far ahead"},
                },
                "required": ["city"],
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "send",
            "description": "Send a message",
            "parameters": {
                "type": "object",
                "properties": {"text": {"type": "string", "description": "What"}},
                "required": ["text"],
            },
        },
    },
]
USER = {"role": "user", "content": "What's the weather in Zürich? <3 {{ 7 * 7 }}"}


def call(identity: str, name: str, **arguments: Any) -> dict[str, Any]:
    return {
        "id": identity,
        "type": "function",
        "function": {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)},
    }


def result(identity: str, name: str, content: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": identity, "name": name, "content": content}


ONE = call("abcdefgh1", "get_weather", city='Zürich "Süd"\n', days=3)
TWO = call("abcdefgh2", "send", text="日本 <b> {x}")
CONVERSATIONS: dict[str, Messages] = {
    "user": [USER],
    "system": [{"role": "system", "content": " Be brief. "}, USER],
    "turns": [USER, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nCold."}, {"role": "user", "content": "Why?\n"}],
    "reasoning": [
        USER,
        {"role": "assistant", "content": "One", "reasoning_content": "two"},
        {"role": "user", "content": "日本\t🙂"},
    ],
    "call": [
        USER,
        {"role": "assistant", "content": "Wait.", "tool_calls": [ONE]},
        result("abcdefgh1", "get_weather", '{"t": 3}'),
    ],
    "null": [USER, {"role": "assistant", "content": None, "tool_calls": [ONE]}, result("abcdefgh1", "get_weather", "3 °C")],
    "parallel": [
        {"role": "system", "content": "S"},
        USER,
        {"role": "assistant", "content": None, "tool_calls": [ONE, TWO]},
        result("abcdefgh1", "get_weather", "3 °C"),
        result("abcdefgh2", "send", "sent"),
        {"role": "assistant", "content": "Done."},
        {"role": "user", "content": "And now?"},
    ],
    "thoughtful call": [
        USER,
        {"role": "assistant", "content": "", "reasoning_content": "I must look.", "tool_calls": [TWO]},
        result("abcdefgh2", "send", "sent"),
    ],
    "two rounds": [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [ONE]},
        result("abcdefgh1", "get_weather", "3 °C"),
        {"role": "assistant", "content": None, "tool_calls": [TWO]},
        result("abcdefgh2", "send", "sent"),
    ],
}


def variants(messages: Messages) -> list[Messages]:
    """What a user of `transformers` would try in turn: arguments as objects, null as null; then as texts, and empty."""
    made = []
    for objects in (True, False):
        for null in (True, False):
            conversation = copy.deepcopy(messages)
            for message in conversation:
                if message.get("content", "") is None and not null:
                    message["content"] = ""
                for each in message.get("tool_calls", ()) if objects else ():
                    each["function"]["arguments"] = json.loads(each["function"]["arguments"])
            made.append(conversation)
    return made


def as_clients_send(messages: Messages) -> Messages:
    """Without the function's name in tool messages, which OpenAI's API does not have."""
    return [{k: v for k, v in m.items() if not (m["role"] == "tool" and k == "name")} for m in messages]


def theirs(source: str, messages: Messages, **given: Any) -> str | None:
    """What `transformers` renders; None when the template refuses or fails."""
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        return str(render_jinja_template([messages], chat_template=source, **given)[0][0])
    except (TemplateError, TypeError, KeyError, ValueError, AttributeError, IndexError):
        return None


def left_to_callers(tools: Messages | None) -> dict[str, str]:
    """Variables that `transformers` hands on and whoever calls it must know of."""
    made = {name: date.today().strftime(form) for name, form in DATES.items()}
    return {**made, FUNCTIONS: json.dumps([tool["function"] for tool in tools or ()], ensure_ascii=False, indent=4)}


def expected(source: str, messages: Messages, **given: Any) -> str | None:
    """What `transformers` renders for the first variant that the template takes; one that shows the calls, and not in Python's
    spelling, counts more."""
    given = {**left_to_callers(given.get("tools")), **given}
    rendered = [text for m in variants(messages) if (text := theirs(source, m, **given)) is not None]
    needles = [call["function"]["name"] for m in messages for call in m.get("tool_calls", ())]
    python = ("{'city'", "{'text'", "None")

    def rank(text: str) -> tuple[bool, bool]:
        return all(n in text for n in needles), not any(p in text for p in python)

    return max(rendered, key=rank, default=None)
