"""Messages of OpenAI's chat API in the forms that chat templates expect.

Templates disagree in four things: whether the content of a message is one text or a list of parts, whether the arguments of a
call are an object or the text of one, whether a turn that only calls tools has a null content or an empty one, and which ids
of calls they take. ``Form`` says what a template wants; ``forms`` lists what can still be tried when it refuses.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from ferrum.text.checks import check_text

Message: TypeAlias = Mapping[str, Any]
REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
# The only variables of a template that a request may set.
TEMPLATE_OPTIONS = frozenset({"enable_thinking", "reasoning_effort"})
ID_CHARS = 9  # Mistral's templates take ids of exactly nine letters and digits


@dataclass(frozen=True, slots=True)
class Form:
    """``parts``: contents as lists, always or (None) where the client sent one. ``short_ids``: ids of ``ID_CHARS`` characters.

    ``wrap``: arguments that are not JSON become an object with one field instead of a text.
    """

    parts: bool | None = False
    objects: bool = True
    null_content: bool = True
    short_ids: bool = False
    wrap: bool = False
    developer: bool = False  # the template knows this role

    def others(self) -> Iterator[Form]:
        """This form, then those that differ in what a template may stumble over, the likelier ones first."""
        for short_ids in (False, True):
            for objects, wrap in ((self.objects, False), (self.objects, True), (not self.objects, False)):
                for null_content in (self.null_content, not self.null_content):
                    yield replace(self, objects=objects, wrap=wrap, null_content=null_content, short_ids=short_ids)


def forms(messages: Sequence[Message], form: Form) -> Iterator[list[dict[str, Any]]]:
    """``messages`` in ``form``, then in others of its kind, each only once. Raises FerrumError for what no template takes."""
    seen: list[list[dict[str, Any]]] = []
    for each in form.others():
        made = shaped(messages, each)
        if made not in seen:
            seen.append(made)
            yield made


def shaped(messages: Sequence[Message], form: Form) -> list[dict[str, Any]]:
    """``messages`` in one form. Raises FerrumError for texts that are none."""
    names: dict[str, str] = {}  # of the calls so far, by id: tool messages seldom name their function
    return [_message(message, f"messages[{i}]", form, names) for i, message in enumerate(messages)]


def _message(message: Message, where: str, form: Form, names: dict[str, str]) -> dict[str, Any]:
    result = {key: value for key, value in message.items() if value is not None}
    if not result.get("tool_calls"):
        result.pop("tool_calls", None)
    if result.get("role") == "developer" and not form.developer:
        result["role"] = "system"
    content = message.get("content")
    if content is None and ("content" in message or "tool_calls" in result):
        result["content"] = None if form.null_content else ""
    elif content is not None:
        result["content"] = _content(content, where, form)
    if isinstance(result.get("name"), str):
        check_text(result["name"], f"{where}.name")
    if "tool_calls" in result:
        result["tool_calls"] = [_call(c, f"{where}.tool_calls[{i}]", form, names) for i, c in enumerate(result["tool_calls"])]
    if isinstance(given := result.get("tool_call_id"), str):
        if given in names:
            result.setdefault("name", names[given])
        result["tool_call_id"] = short_id(given) if form.short_ids else given
    reasoning = next((result[key] for key in REASONING_FIELDS if key in result), None)
    if reasoning is not None:
        result = {"thinking": reasoning, **result, "reasoning_content": reasoning}
    return result


def _content(content: Any, where: str, form: Form) -> Any:
    listed = isinstance(content, (list, tuple))
    texts = [part["text"] for part in content if part.get("type") == "text"] if listed else [content]
    for text in texts:
        if isinstance(text, str):
            check_text(text, f"{where}.content")
    if form.parts or (listed and form.parts is None):
        return [{"type": "text", "text": text} for text in texts]
    return "\n".join(texts) if listed else content


def _call(call: Mapping[str, Any], where: str, form: Form, names: dict[str, str]) -> dict[str, Any]:
    function = dict(call["function"])
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        check_text(arguments, f"{where}.function.arguments")
        value = _parsed(arguments)
        if not isinstance(value, dict):  # cut off, or never JSON: what the model said is shown to it as it was
            function["arguments"] = {"arguments": arguments} if form.wrap else arguments
        elif form.objects:
            function["arguments"] = value
    elif isinstance(arguments, Mapping) and not form.objects:
        function["arguments"] = json.dumps(arguments, ensure_ascii=False)
    result = {**call, "function": function}
    if isinstance(call.get("id"), str):
        names[call["id"]] = function.get("name", "")
        result["id"] = short_id(call["id"]) if form.short_ids else call["id"]
    return result


def _parsed(arguments: str) -> Any:
    try:
        return json.loads(arguments or "{}", parse_constant=_no_constant, strict=False)
    except (ValueError, RecursionError):
        return None


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def short_id(given: str) -> str:
    """An id of nine letters and digits that stands for ``given``, which stays if it is one."""
    if len(given) == ID_CHARS and given.isascii() and given.isalnum():
        return given
    return hashlib.sha256(given.encode("utf-8", "replace")).hexdigest()[:ID_CHARS]


# ---- what a template wants, found by asking it


Render = Callable[[list[dict[str, Any]]], str | None]


def probe_form(render: Render, *, developer: bool) -> Form:
    """The form that a template wants. ``render``: messages already shaped → text, or None where the template refuses."""
    form = Form(parts=_probe_parts(render), developer=developer)
    form = replace(form, objects=_probe_arguments(render, form))
    return replace(form, null_content=_probe_null(render, form))


def _probe_parts(render: Render) -> bool | None:
    needle = "needle in a message"
    text = render([{"role": "user", "content": needle}])
    listed = render([{"role": "user", "content": [{"type": "text", "text": needle}]}])
    takes_lists = listed is not None and needle in listed and "'text'" not in listed and '"text"' not in listed
    if text is None or needle not in text:
        return takes_lists
    return None if takes_lists else False


def _probe_arguments(render: Render, form: Form) -> bool:
    """Whether arguments are wanted as an object: yes, unless only their text comes out as JSON."""
    spelled = {}
    for objects in (True, False):
        tried = (render(m) for m in forms(_CALLING, replace(form, objects=objects)) if _has_objects(m) is objects)
        spelled[objects] = next((text for text in tried if text is not None), "")
    if "{'key'" not in spelled[True] and "needle" in spelled[True]:
        return True
    return "needle" not in spelled[False]


def _probe_null(render: Render, form: Form) -> bool:
    """Whether a null content is wanted as it is: yes, unless it comes out as Python's None."""
    null, empty = (render(shaped(_CALLING, replace(form, null_content=null))) for null in (True, False))
    return not (null is not None and empty is not None and null.count("None") > empty.count("None"))


_CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "probe", "arguments": '{"key": "needle"}'}}
_CALLING: list[dict[str, Any]] = [
    {"role": "user", "content": "x"},
    {"role": "assistant", "content": None, "tool_calls": [_CALL]},
    {"role": "tool", "tool_call_id": "abcdefghi", "content": "y"},
]


def _has_objects(messages: list[dict[str, Any]]) -> bool:
    return isinstance(messages[1]["tool_calls"][0]["function"]["arguments"], dict)
