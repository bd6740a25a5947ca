"""Which form of content a request asks for, in all the spellings that clients have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ferrum.errors import FerrumError
from ferrum.server.wire import BadRequest
from ferrum.structured.wish import Structured


def wish_of(request: object) -> tuple[Structured | None, str]:
    """The form of content, None for any, and the field that asks for it. Raises BadRequest."""
    found = []
    for name, read in _FIELDS.items():
        value = getattr(request, name, None)
        if value is not None:
            try:
                wish = read(value)
            except FerrumError as error:
                raise BadRequest(error.what, name) from None
            if wish is not None:
                found.append((wish, _where(name, value)))
    if len(found) > 1:
        raise BadRequest(f"{found[0][1]} and {found[1][1]} cannot be asked for together", found[1][1])
    return found[0] if found else (None, "")


def _where(name: str, value: Any) -> str:
    kind = value.get("type") if name == "response_format" else None
    return f"{name}.{kind}" if kind in ("json_schema", "structural_tag") else name


def _response_format(value: Any) -> Structured | None:
    kind = value.get("type") if isinstance(value, Mapping) else None
    if kind == "text":
        return None
    if kind == "structural_tag":
        return Structured(structural_tag=value)
    holder = value
    if kind == "json_schema" and "schema" not in value:
        given = value.get("json_schema")
        holder = given if isinstance(given, Mapping) else {}
    if kind not in ("json_schema", "json_object"):
        what = "response_format must be of type text, json_object, json_schema or structural_tag"
        raise BadRequest(what, "response_format")
    schema = holder.get("schema")
    if schema is None and kind == "json_schema":
        raise BadRequest("response_format.json_schema.schema is missing", "response_format.json_schema")
    return Structured(json_object=True) if schema is None else Structured(json=schema)


_STRUCTURED_HINTS = frozenset(("disable_fallback", "_backend", "_backend_was_auto"))


def _structured_outputs(value: Any) -> Structured | None:
    """vLLM's. Its other options are refused unless they ask for nothing."""
    if not isinstance(value, Mapping):
        raise BadRequest("structured_outputs must be an object", "structured_outputs")
    known = {"json", "json_object", "regex", "choice", "grammar", "structural_tag"}
    given = {k: v for k, v in value.items() if v is not None and v is not False and k not in _STRUCTURED_HINTS}
    compact = bool(given.pop("disable_any_whitespace", False))
    for name in given.keys() - known:
        raise BadRequest(f"structured_outputs.{name} is not supported", "structured_outputs", "unsupported_parameter")
    return Structured(compact=compact, **given) if given else None


def _field(name: str) -> Callable[[Any], Structured | None]:
    return lambda value: Structured(**{name: value}) if value != "" and value != [] else None


_FIELDS: Mapping[str, Callable[[Any], Structured | None]] = {
    "response_format": _response_format,
    "structured_outputs": _structured_outputs,
    "guided_json": _field("json"),
    "guided_regex": _field("regex"),
    "guided_choice": _field("choice"),
    "guided_grammar": _field("grammar"),
    "json_schema": _field("json"),
    "regex": _field("regex"),
    "choice": _field("choice"),
    "grammar": _field("grammar"),
    "ebnf": _field("grammar"),
}
