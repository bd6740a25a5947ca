"""JSON schemas before they become grammars: what of them says something about the form of a value."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from ferrum.errors import FerrumError

MAX_DEPTH = 64
FORMATS = frozenset(
    ("date", "date-time", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri", "unknown")
)  # others are annotations, as the standard has it
_SCHEMAS = frozenset(
    ("additionalItems", "additionalProperties", "contains", "else", "if", "items", "not", "propertyNames", "then")
    + ("unevaluatedItems", "unevaluatedProperties", "contentSchema")
)
_LISTS = frozenset(("allOf", "anyOf", "oneOf", "prefixItems"))
_MAPS = frozenset(("properties", "patternProperties", "$defs", "definitions", "dependentSchemas"))
_OPTIONS = "x-guidance"  # how the library is told of its options within a schema; never taken from a request
BLANKS = r"[ ]{1,2}|\r?\n[ \t]{0,80}"  # between the parts of a value: bounded, so that no model writes blanks for ever


def prepared(schema: Any, *, lenient: bool = False, compact: bool = False) -> dict[str, Any]:
    """A schema as the library takes it. ``lenient``: what it cannot keep to is ignored. ``compact``: without blanks. Raises
    FerrumError "grammar-refused"."""
    if isinstance(schema, str):
        schema = parsed(schema)
    cleaned = _cleaned(schema, 0)
    if not lenient:
        _check_counts(cleaned)
    if cleaned is False:
        raise refused("the schema allows nothing")
    whole: dict[str, Any] = {} if cleaned is True else dict(cleaned)
    whole.pop("$schema", None)
    options: dict[str, Any] = {"whitespace_flexible": False} if compact else {"whitespace_pattern": BLANKS}
    if lenient:
        options |= {"lenient": True, "coerce_one_of": True}
    return {**whole, _OPTIONS: options}


def parsed(text: str) -> Any:
    """Raises FerrumError for what is not JSON."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise refused("the schema is not JSON") from None


def refused(what: str, where: str = "structured") -> FerrumError:
    return FerrumError("grammar-refused", what, where)


def _cleaned(schema: Any, depth: int) -> Any:
    if isinstance(schema, bool):
        return schema
    if not isinstance(schema, dict):
        raise refused("a schema must be an object or a bool")
    if depth > MAX_DEPTH:
        raise refused(f"the schema is nested deeper than {MAX_DEPTH}")
    if _OPTIONS in schema:
        raise refused(f"the schema's keyword {_OPTIONS} is not supported")
    return {key: _cleaned_value(key, value, depth + 1) for key, value in schema.items() if _says_something(key, value)}


def _check_counts(schema: Any) -> None:
    """Raises FerrumError where an object could only be filled by names that are not declared: nothing keeps these apart."""
    for inner in _within(schema):
        least, needed = inner.get("minProperties"), inner.get("required")
        if isinstance(least, int) and least > 1 + len(needed if isinstance(needed, list) else ()):
            raise refused("the schema's keyword minProperties is supported up to one more than the required names")


def _within(schema: Any) -> Iterator[dict[str, Any]]:
    """``schema`` and all in it."""
    if not isinstance(schema, dict):
        return
    yield schema
    for key, value in schema.items():
        inner = value.values() if key in _MAPS and isinstance(value, dict) else value if isinstance(value, list) else [value]
        if key in _MAPS or key in _LISTS or key in _SCHEMAS:
            for one in inner:
                yield from _within(one)


def _says_something(key: str, value: Any) -> bool:
    return key != "format" or not isinstance(value, str) or value in FORMATS


def _cleaned_value(key: str, value: Any, depth: int) -> Any:
    if key in _MAPS and isinstance(value, dict):
        return {name: _cleaned(inner, depth) for name, inner in value.items()}
    if (key in _LISTS or key == "items") and isinstance(value, list):
        return [_cleaned(inner, depth) for inner in value]
    return _cleaned(value, depth) if key in _SCHEMAS and isinstance(value, (dict, bool)) else value


def _no_constant(name: str) -> Any:
    raise ValueError(name)
