"""Weights and the clock of ``template_sandbox``: what a template may hold, and how long it may take."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.utils import Namespace

MAX_TEXT = 16 * 1024 * 1024
MAX_WEIGHT = 4 * MAX_TEXT
ELEMENT_WEIGHT = 32
MAX_BITS = 4096

MAX_MADE = 256 * 1024 * 1024  # characters, and ELEMENT_WEIGHT per element, of all values that one rendering makes


@dataclass
class Budget:
    """What is left for one rendering: ``deadline`` on the monotonic clock, ``room`` for values to be made."""

    deadline: float = float("inf")
    room: int = MAX_MADE


budget: ContextVar[Budget | None] = ContextVar("budget", default=None)


class TemplateLimit(SecurityError):
    """The template exceeded a bound."""


def check_time() -> None:
    left = budget.get()
    if left is not None and time.monotonic() > left.deadline:
        raise TemplateLimit("it takes too long")


def spend(weight: int) -> None:
    """Count a value that was made. What is made and dropped counts too: recursion could keep it all."""
    left = budget.get()
    if left is not None:
        left.room -= weight
        if left.room < 0:
            raise TemplateLimit("it makes too much")


def weigh(value: Any, room: int = MAX_WEIGHT) -> int:
    """Characters and elements of ``value`` with everything inside it. Raises TemplateLimit beyond ``room``."""
    total = 0
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            total += len(item)
            if len(item) > MAX_TEXT:
                raise TemplateLimit("a text becomes too long")
        elif isinstance(item, Mapping):
            stack.extend(item.keys())
            stack.extend(item.values())
        elif isinstance(item, (list, tuple, set, frozenset)):
            stack.extend(item)
        elif isinstance(item, Namespace):
            raise TemplateLimit("a namespace is not a value")
        elif isinstance(item, int) and item.bit_length() > MAX_BITS:
            raise TemplateLimit("a number becomes too large")
        total += ELEMENT_WEIGHT
        if total > room:
            raise TemplateLimit("a value becomes too large")
    return total


def weighed(value: Any) -> Any:
    """``value`` itself, if it is not too large."""
    if value is None or type(value) in (bool, float):
        return value
    weigh(value)
    return value


def made(value: Any) -> Any:
    """``value`` itself, which is new, if it is not too large."""
    if value is not None and type(value) not in (bool, float):
        spend(weigh(value))
    return value


def ticking(items: Iterable[Any]) -> Iterator[Any]:
    """``items``, with a look at the clock before each."""
    for item in items:
        check_time()
        yield item


def bounded_concat(parts: Iterable[str]) -> str:
    """``"".join`` that gives up beyond ``MAX_TEXT``."""
    total = 0
    kept: list[str] = []
    for part in parts:
        total += len(part)
        if total > MAX_TEXT:
            raise TemplateLimit("the text becomes too long")
        if not len(kept) & 1023:
            check_time()
        kept.append(part)
    spend(total)
    return "".join(kept)
