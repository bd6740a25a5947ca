"""The three kinds of fields that a request may have, written as types, so that one struct is the whole table of a route.

honoured       an ordinary type with its range
default only   ``Annotated[Json, only(...)]``: known, not supported; what means "as usual" is taken, the rest refused by name
hint           ``Hint``: changes no output; whatever it holds is taken and forgotten

A name that is none of these is refused, since it may be one that would change the answer. Null is as if not given.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, get_type_hints

import msgspec
from msgspec import Meta

MAX_DEFAULT_BYTES = 256  # no value that means a default is longer

if TYPE_CHECKING:
    Json: TypeAlias = Any
else:
    Json = msgspec.Raw  # skipped over by the decoder, so that a large value costs nothing

_HINT = "hint"
_ONLY = "only"


def only(*values: object) -> Meta:
    """The values that ask for nothing but the default."""
    # As JSON, because Python holds 0 and False for equal, and the types that carry them too.
    return Meta(extra={_ONLY: tuple(map(msgspec.json.encode, values))}, extra_json_schema={"enum": [*values, None]})


Hint: TypeAlias = Annotated[Json, Meta(extra={_HINT: True}, description="changes no output")]


class Request(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Base of everything that is read from a body. What is no more than a default or a hint is None afterwards."""

    def __post_init__(self) -> None:
        for name, values in silent_fields(type(self)):
            given = getattr(self, name)
            if given is None:
                continue
            if values is not None and not _means_default(given, values):
                raise ValueError(f"{name} is not supported")  # msgspec adds where
            setattr(self, name, None)


@cache
def silent_fields(kind: type[Request]) -> tuple[tuple[str, tuple[bytes, ...] | None], ...]:
    """The fields of ``kind`` that never reach the model: (name, JSON that is taken, or None for everything)."""
    found = []
    for name, hint in get_type_hints(kind, include_extras=True).items():
        for note in getattr(hint, "__metadata__", ()):
            extra = note.extra or {} if isinstance(note, Meta) else {}
            if _HINT in extra or _ONLY in extra:
                found.append((name, extra.get(_ONLY)))
    return tuple(found)


def _means_default(given: Any, values: tuple[bytes, ...]) -> bool:
    raw = bytes(given)
    if len(raw) > MAX_DEFAULT_BYTES:
        return False
    try:
        value = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):  # what is skipped over is not looked at
        return False
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value is None or msgspec.json.encode(value) in values
