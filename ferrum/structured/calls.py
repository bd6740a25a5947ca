"""Tool calls as a grammar: a model's syntax around the JSON schemas of its functions' arguments."""

from __future__ import annotations

import keyword
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ferrum.structured.call_writing import NUMBER, WRITINGS, Writing
from ferrum.structured.grammar import Parts, alternatives
from ferrum.structured.lark import TEXT, joined, quoted
from ferrum.structured.schema import prepared, refused
from ferrum.text.call_literals import GEMMA_QUOTE
from ferrum.text.tool_formats import FORMATS

MAX_CALLS = 32  # in one answer
WHERE = "tools"
_DIGITS = "/[0-9]{1,2}/"
_SAYS_NOTHING = frozenset(
    ("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment", "$schema", "$id")
)
_SHAPES_OBJECT = _SAYS_NOTHING | {"type", "properties", "required", "additionalProperties", "$defs", "definitions"}
_SHAPES_TEXT = _SAYS_NOTHING | {"type", "enum", "const"}


@dataclass(frozen=True, slots=True)
class Function:
    """A declared function. ``strict``: its arguments always keep to ``parameters``; else as far as can be said."""

    name: str
    parameters: Mapping[str, Any] | None
    strict: bool = False


def calls(parts: Parts, form: str, functions: Sequence[Function], *, several: bool) -> str:
    """The expression of one call or more, and nothing beside them. Raises FerrumError "grammar-refused"."""
    writing = WRITINGS[form]
    return joined(spelled(parts, writing.begin + writing.before), _after_opening(parts, writing, functions, several))


def text_and_calls(parts: Parts, form: str, functions: Sequence[Function], *, several: bool) -> str:
    """Any text; where it turns to calls, these keep to the grammar. Raises FerrumError "grammar-refused"."""
    writing, markers = WRITINGS[form], FORMATS[form].markers
    opened = writing.begin + writing.before
    marker = next((mark for mark in markers if opened.startswith(mark)), "")
    if writing.answer:
        parts.rule("plain", TEXT)
        return f"({joined(parts.literals.exactly(writing.answer), 'plain')} | {calls(parts, form, functions, several=several)})"
    if FORMATS[form].at_start:
        parts.rule("plain", r"/[^{\[](?s:.)*/")
        return f"({calls(parts, form, functions, several=several)} | plain)?"
    parts.rule("plain", TEXT)
    lead = joined(parts.until(marker, "before_calls"), spelled(parts, opened[len(marker) :]))
    return f"({joined(lead, _after_opening(parts, writing, functions, several))} | plain)"


def spelled(parts: Parts, text: str) -> str:
    """``text`` with what ``NUMBER`` stands for."""
    found = [parts.literals.exactly(piece) for piece in text.split(NUMBER)]
    return f" {_DIGITS} ".join(found).strip()


def _after_opening(parts: Parts, writing: Writing, functions: Sequence[Function], several: bool) -> str:
    """What follows the text that opens the first call."""
    options = []
    for index, function in enumerate(functions):
        arguments = _ARGUMENTS[writing.arguments](parts, writing, function, f"f{index}")
        options.append(joined(quoted(function.name), spelled(parts, writing.middle), arguments))
    parts.rule("call", " | ".join(options))
    more = ""
    if several and writing.several:
        again = spelled(parts, writing.after + writing.between + writing.before)
        more = f"({joined(again, 'call')}){{0,{MAX_CALLS - 1}}}"
    return joined("call", more, parts.literals.exactly(writing.after + writing.end, last=True))


# ---- arguments, by how they are written


def _json(parts: Parts, writing: Writing, function: Function, rule: str) -> str:
    return parts.refer("json", prepared(_object(function), lenient=not function.strict), WHERE)


def _object(function: Function) -> dict[str, Any]:
    """The schema of the arguments, which are an object in any case."""
    schema = function.parameters
    if schema is None:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    if schema.get("type", "object") != "object":
        raise refused(f"the parameters of {function.name} must be an object", WHERE)
    return {**schema, "type": "object"}


def _tags(parts: Parts, writing: Writing, function: Function, rule: str) -> str:
    each = []
    for index, (name, schema, required) in enumerate(_properties(function)):
        one = f"{rule}p{index}"
        is_text = schema.get("type") == "string" and not {"enum", "const"} & schema.keys()
        opened = writing.value_text or writing.value if is_text else writing.value
        head = joined(parts.literals.exactly(writing.key), quoted(name), parts.literals.exactly(opened))
        if is_text:
            _check_keywords(function, schema, _SHAPES_TEXT, f"text {name}")
            value = parts.until(writing.value_end.rstrip("\n"), one)
            tail = "\n" if writing.value_end.endswith("\n") else ""
        else:
            value = _tag_value(parts, function, schema)
            tail = writing.pad + writing.value_end
        parts.rule(f"{one}arg", joined(head, value, parts.literals.exactly(tail)))
        each.append(f"{one}arg" if required else f"{one}arg?")
    return " ".join(each)


def _tag_value(parts: Parts, function: Function, schema: Mapping[str, Any]) -> str:
    """A value that is not free text: texts of a list as they are, anything else as JSON."""
    named = schema["enum"] if "enum" in schema else [schema["const"]] if "const" in schema else None
    if schema.get("type") == "string" and isinstance(named, list) and named and all(isinstance(v, str) and v for v in named):
        return alternatives(list(map(quoted, named)))
    return _value(parts, function, schema)


def _python(parts: Parts, writing: Writing, function: Function, rule: str) -> str:
    """NAME=VALUE; JSON's values are read as Python's, but for escapes that the two do not share."""
    named = []
    for name, schema, required in _properties(function):
        if not name.isidentifier() or keyword.iskeyword(name):
            raise refused(
                f"the parameter {name} of {function.name} is no name in Python, which this model writes calls in", WHERE
            )
        named.append((joined(quoted(f"{name}="), _value(parts, function, schema, json_allowed_escapes='"\\nrtbf')), required))
    return _comma_list(parts, rule, named, ", ")


def _gemma(parts: Parts, writing: Writing, function: Function, rule: str) -> str:
    named = []
    for index, (name, schema, required) in enumerate(_properties(function)):
        value = _gemma_value(parts, function, schema, f"{rule}v{index}")
        named.append((joined(quoted(f"{name}:"), value), required))
    return _comma_list(parts, rule, named, ",")


def _gemma_value(parts: Parts, function: Function, schema: Mapping[str, Any], rule: str) -> str:
    kind = schema.get("type")
    quote = parts.literals.exactly(GEMMA_QUOTE)
    if kind == "string":
        named = schema["enum"] if "enum" in schema else [schema["const"]] if "const" in schema else None
        if isinstance(named, list) and named and all(isinstance(v, str) for v in named):
            return joined(quote, alternatives(list(map(quoted, named))), quote)
        _check_keywords(function, schema, _SHAPES_TEXT, "text")
        return joined(quote, parts.until(GEMMA_QUOTE, rule))
    if kind in ("number", "integer", "boolean", "null"):
        return _value(parts, function, schema)
    items = schema.get("items")
    if kind == "array" and isinstance(items, Mapping) and not schema.keys() - _SAYS_NOTHING - {"type", "items"}:
        inner = parts.rule(rule + "i", _gemma_value(parts, function, items, rule + "x"))
        return f'"[" ({inner} ("," {inner})*)? "]"'
    raise refused(
        f"{function.name} has a parameter that this model's calls cannot be bound to: nested or of several types", WHERE
    )


def _comma_list(parts: Parts, rule: str, named: Sequence[tuple[str, bool]], comma: str) -> str:
    """Optional ones may be left out; a comma stands between those that are there. ``rule`` + i: from i on, some came before."""
    first: list[str] = []
    for index in range(len(named) - 1, -1, -1):
        expression, required = named[index]
        rest = f"{rule}n{index + 1}" if index + 1 < len(named) else ""
        one = parts.rule(f"{rule}a{index}", expression)
        following = joined(quoted(comma), one, rest)
        parts.rule(f"{rule}n{index}", following if required else f"{following} | {rest or _nothing()}")
        begun = joined(one, rest)
        first = [begun] if required else [begun, *first]
    return (alternatives(first) + ("?" if all(not r for _, r in named) else "")) if named else ""


def _nothing() -> str:
    return '""'


_ARGUMENTS = {"json": _json, "tags": _tags, "python": _python, "gemma": _gemma}


def _properties(function: Function) -> list[tuple[str, Mapping[str, Any], bool]]:
    """(name, schema, required) of the parameters of a function whose syntax has no JSON object around them."""
    schema = _object(function)
    _check_keywords(function, schema, _SHAPES_OBJECT, "parameters")
    required = schema.get("required")
    needed = frozenset(required if isinstance(required, list) else ())
    properties = schema.get("properties")
    found = [(str(n), s if isinstance(s, Mapping) else {}, n in needed) for n, s in (properties or {}).items()]
    missing = needed - {name for name, _, _ in found}
    if missing and function.strict:
        raise refused(f"{function.name} requires {sorted(missing)[0]}, which it does not declare", WHERE)
    return found


def _check_keywords(function: Function, schema: Mapping[str, Any], known: frozenset[str], what: str) -> None:
    """A strict function may not ask for what this syntax cannot keep to; from others it is ignored."""
    unknown = [key for key in schema if key not in known]
    if function.strict and unknown:
        raise refused(f"the keyword {unknown[0]} of {function.name}'s {what} is not supported in this model's calls", WHERE)


def _value(parts: Parts, function: Function, schema: Mapping[str, Any], **options: Any) -> str:
    """A parameter's value in JSON, with the definitions that its schema may refer to."""
    root = function.parameters or {}
    shared = {key: root[key] for key in ("$defs", "definitions") if key in root}
    whole = prepared({**shared, **schema}, lenient=not function.strict)
    whole["x-guidance"] |= options
    return parts.refer("json", whole, WHERE)
