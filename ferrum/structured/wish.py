"""What an answer must be, as users say it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ferrum.errors import FerrumError

MAX_CHARS = 1 << 20
MAX_CHOICES = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Structured:
    """The form of an answer: exactly one of these. Raises FerrumError for none, several, or another type.

    ``json``: a JSON schema (draft 2020-12) as a dict, a bool or its text. ``json_object``: any JSON object. ``regex``: the whole
    answer matches it. ``choice``: one of these texts. ``grammar``: in Lark's or llama.cpp's (GBNF) syntax. ``structural_tag``:
    vLLM's dict, text in which stretches between tags are JSON. ``compact``: no blanks in JSON.
    """

    json: Any = None
    json_object: bool = False
    regex: str | None = None
    choice: tuple[str, ...] = ()
    grammar: str | None = None
    structural_tag: Any = None
    compact: bool = False

    def __post_init__(self) -> None:
        if (
            not isinstance(self.choice, (list, tuple))
            or not isinstance(self.json_object, bool)
            or not isinstance(self.compact, bool)
        ):
            raise FerrumError("invalid-parameter", "choice must be a list, json_object and compact true or false", "structured")
        object.__setattr__(self, "choice", tuple(self.choice))
        given = [name for name in KINDS if getattr(self, name) not in _NOT_GIVEN.get(name, (None,))]
        if len(given) != 1:
            what = f"give one of {', '.join(KINDS)}" + (f", not {' and '.join(given)}" if given else "")
            raise FerrumError("invalid-parameter", what, "structured")
        if self.json is not None and not isinstance(self.json, (dict, bool, str)):
            raise FerrumError("invalid-parameter", "a schema must be an object, true, or the text of one", "structured")
        for name in ("regex", "grammar"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, str) and 0 < len(value) <= MAX_CHARS):
                raise FerrumError("invalid-parameter", f"{name} must be a text of 1 to {MAX_CHARS} characters", "structured")
        if len(self.choice) > MAX_CHOICES or not all(isinstance(c, str) and 0 < len(c) <= MAX_CHARS for c in self.choice):
            raise FerrumError("invalid-parameter", f"choice must be 1 to {MAX_CHOICES} texts, none of them empty", "structured")


KINDS = ("json", "json_object", "regex", "choice", "grammar", "structural_tag")
_NOT_GIVEN: dict[str, tuple[Any, ...]] = {"json_object": (None, False), "choice": ((),)}
