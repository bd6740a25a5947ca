"""A jinja2 sandbox for templates that came with a model, as `transformers` has it, with a list of what may be touched.

jinja2's own sandbox keeps a template away from names that begin with an underscore; here a template reaches only the types
that conversations are made of, and of those only methods that give text, numbers and lists. What it may use of memory and
time is bounded by the process that it runs in (``template_worker``).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Joiner, Namespace

_STRING = """
    capitalize casefold center count endswith expandtabs find format format_map index isalnum isalpha isascii isdecimal isdigit
    isidentifier islower isnumeric isprintable isspace istitle isupper join ljust lower lstrip partition removeprefix removesuffix
    replace rfind rindex rjust rpartition rsplit rstrip split splitlines startswith strip swapcase title upper zfill
"""
_LOOP = "index index0 first last length revindex revindex0 depth depth0 previtem nextitem cycle changed"
GLOBALS = frozenset({"range", "dict", "namespace", "cycler", "joiner"})
WITHHELD_FILTERS = frozenset({"attr", "random"})


class TemplateRefusal(jinja2.TemplateError):
    """The template called ``raise_exception``: the conversation does not fit the model."""


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """The environment of all chat templates."""

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols])
        self.filters = {name: f for name, f in self.filters.items() if name not in WITHHELD_FILTERS}
        self.filters["tojson"] = _tojson
        self.globals = {name: value for name, value in self.globals.items() if name in GLOBALS}
        self.globals.update(
            raise_exception=_raise_exception, strftime_now=_strftime_now, dict=_TemplateDict(), namespace=_TemplateNamespace
        )

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """A type that is not listed has no attributes."""
        if isinstance(obj, Namespace):  # its attributes are the template's own values
            return not attr.startswith("_")
        allowed = next((names for kind, names in ATTRIBUTES.items() if isinstance(obj, kind)), frozenset[str]())
        return attr in allowed


class GenerationTag(Extension):
    """``{% generation %}`` … ``{% endgeneration %}`` of training templates: the body, which has a scope of its own."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


# ---- filters and globals that templates written for transformers expect


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """As transformers has it: no HTML escapes."""
    if isinstance(value, Undefined):
        raise jinja2.UndefinedError("an undefined value cannot be written as JSON")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: object = "") -> NoReturn:
    raise TemplateRefusal(str(message)[:200])


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


class _TemplateDict:
    """``dict`` without the class's attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, keys: Iterable[Any], value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


class _TemplateNamespace(Namespace):
    """jinja2's ``namespace`` that takes no private names, as transformers has it."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # noqa: B902, N805
        self, args = args[0], args[1:]
        attributes = dict(*args, **kwargs)
        for name in attributes:
            _check_public(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_public(name)
        Namespace.__setitem__(self, name, value)


def _check_public(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError("a namespace takes no private names")


ATTRIBUTES: Mapping[type, frozenset[str]] = {
    str: frozenset(_STRING.split()),
    dict: frozenset({"get", "items", "keys", "values", "copy"}),
    list: frozenset({"index", "count", "copy"}),
    tuple: frozenset({"index", "count"}),
    LoopContext: frozenset(_LOOP.split()),
    Macro: frozenset({"name", "arguments", "catch_kwargs", "catch_varargs", "caller"}),
    Cycler: frozenset({"next", "current", "reset"}),
    Joiner: frozenset(),
    _TemplateDict: frozenset({"fromkeys"}),
}
