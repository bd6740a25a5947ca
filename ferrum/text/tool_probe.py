"""Which format a model writes its tool calls in, found by a round trip: its template writes a call, and whoever reads the same
call knows the format."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any, TypeAlias

from ferrum.errors import FerrumError
from ferrum.text.template_process import Template
from ferrum.text.tool_bodies import CallArguments, CallName
from ferrum.text.tool_calls import ToolCallParser
from ferrum.text.tool_formats import FORMATS, ToolFormat

Json: TypeAlias = dict[str, Any]
Call: TypeAlias = tuple[str, Json]
_PROPERTIES: Json = {
    "city": {"type": "string", "description": "where"},
    "days": {"type": "integer", "description": "how many"},
    "exact": {"type": "boolean", "description": "or not"},
    "more": {"type": "array", "items": {"type": "object"}, "description": "else"},
}
TOOLS: list[Json] = [
    {
        "type": "function",
        "function": {"name": name, "description": "d", "parameters": {"type": "object", "properties": _PROPERTIES}},
    }
    for name in ("get_weather", "find.place-2")
]
SCHEMAS = {tool["function"]["name"]: tool["function"]["parameters"] for tool in TOOLS}
FIRST: Call = ("get_weather", {"city": "Zürich \"Süd\" {x}", "days": 3, "exact": True, "more": [{"a": [1, None]}, {"b": "c, d"}]})
SECOND: Call = ("find.place-2", {"city": "O'Brien\nwest"})
PLAIN: Call = ("get_weather", {"city": "Oslo", "days": 3})  # what every format can say


MARK_CHARS = 6  # shorter ones say nothing


def find_tool_format(template: Template) -> tuple[str, str]:
    """The name in ``FORMATS`` and "", or "" and the reason why the model has no tool format."""
    texts = list(answers(template, [PLAIN]))
    if not texts:
        return "", "its chat template refuses a conversation with tool calls"
    shown = [text for text in texts if "get_weather" in text and "Oslo" in text]
    if not shown:
        named = _named_format(template)
        return named, "" if named else "its chat template does not show the model's own calls"
    best = [(score, name) for name, form in FORMATS.items() if (score := _score(template, form, shown))]
    if not best:
        return "", "its calls are written in a form that is not known"
    most = max(score for score, _ in best)
    return next(name for score, name in best if score == most), ""


def _named_format(template: Template) -> str:
    """The format whose marks a template names that describes calls and does not show them; most of them, or nothing."""
    if not template.takes("tools"):
        return ""
    shares = {}
    for name, form in FORMATS.items():
        marks = [mark for mark in {*form.markers, *form.call.marks, *form.closers} if len(mark) >= MARK_CHARS]
        shares[name] = sum(mark in template.source for mark in marks) / len(marks)
    best = max(shares, key=lambda name: shares[name])
    return best if shares[best] >= 0.5 and not FORMATS[best].at_start else ""


def _score(template: Template, form: ToolFormat, shown: list[str]) -> float:
    """How much of what the template writes ``form`` reads back: nothing, a plain call, a difficult one, several; then, how many
    of its own markers are there."""
    if not any(read_calls(form, text) == [PLAIN] for text in shown):
        return 0
    several = [FIRST, SECOND]
    rounds = ([FIRST], several, [SECOND])
    read = sum(any(read_calls(form, text) == calls for text in answers(template, calls)) for calls in rounds)
    return 1 + read + sum(marker in shown[0] for marker in form.markers) / (1 + len(form.markers))


def answers(template: Template, calls: list[Call]) -> Iterator[str]:
    """What the model must have said for ``calls``, as the template writes it: all after the generation prompt, and all after the
    question (some templates show past turns otherwise than they prompt for them). The text may go on beyond the turn."""
    question = {"role": "user", "content": "What now?"}
    functions = [{"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)} for name, arguments in calls]
    made = [{"id": f"abcdefgh{i}", "type": "function", "function": f} for i, f in enumerate(functions)]
    turn = {"role": "assistant", "content": None, "tool_calls": made}
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "42"} for call in made]
    for after in ([], results):
        try:
            whole = template.render([question, turn, *after], tools=TOOLS, add_generation_prompt=False)
        except FerrumError:
            continue
        for generate in (True, False):
            try:
                before = template.render([question], tools=TOOLS, add_generation_prompt=generate)
            except FerrumError:
                continue
            yield whole[len(os.path.commonprefix([before, whole])) :]


def read_calls(form: ToolFormat, text: str) -> list[Call]:
    """The calls in ``text``; arguments that are no JSON object count as none."""
    parser = ToolCallParser(form, SCHEMAS)
    names: list[str] = []
    arguments: list[str] = []
    for piece in (*parser.feed(text), *parser.finish()):
        if isinstance(piece, CallName):
            names.append(piece.name)
            arguments.append("")
        elif isinstance(piece, CallArguments):
            arguments[piece.index] += piece.text
    calls = []
    for name, spelled in zip(names, arguments, strict=True):
        try:
            value = json.loads(spelled)
        except ValueError:
            value = None
        calls.append((name, value if isinstance(value, dict) else {}))
    return calls
