"""From what an answer must be, and what stands around it, to the parts of one grammar.

Parts are plain data: they go to a process within bounds (``worker``) that checks them and puts them together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ferrum.structured.lark import TEXT, WHITE, Literals, joined, quoted
from ferrum.structured.schema import parsed, prepared, refused
from ferrum.structured.wish import Structured
from ferrum.text.reasoning import Opening

MAX_TAGS = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """What stands around an answer. ``reasoning``: its marks, empty where there is none; ``begins``: where the prompt leaves it.
    ``turn``: what a model writes between its reasoning and the rest; ``answer``: what it writes before content."""

    reasoning: tuple[str, str] = ("", "")
    begins: Opening = Opening.UNKNOWN
    turn: str = ""
    answer: str = ""


@dataclass(slots=True)
class Parts:
    """Rules of the main grammar and the grammars that it refers to. A reference is checked by itself first: ``where`` is said of
    what is wrong with it."""

    literals: Literals
    rules: list[str] = field(default_factory=list)
    references: list[dict[str, Any]] = field(default_factory=list)

    def refer(self, kind: str, value: Any, where: str) -> str:
        """The expression for another grammar: ``kind`` "json" (a prepared schema), "regex" or "grammar"."""
        name = f"part{len(self.references)}"
        self.references.append({"name": name, "kind": kind, "value": value, "where": where})
        return f"@{name}"

    def until(self, mark: str, rule: str) -> str:
        expression, rules = self.literals.until(mark, rule)
        self.rules += rules
        return expression

    def rule(self, name: str, expression: str) -> str:
        self.rules.append(f"{name}: {expression}")
        return name


def plan(parts: Parts, body: str, frame: Frame) -> dict[str, Any]:
    """The request to the worker: ``body`` is an expression over the rules of ``parts``."""
    rules = [f"start: {_framed(parts, body, frame)}", *parts.rules]
    return {"main": "\n".join(rules) + "\n", "parts": parts.references}


def _framed(parts: Parts, body: str, frame: Frame) -> str:
    start, end = frame.reasoning
    if not (start and end) or frame.begins is Opening.CLOSED:
        return body
    after = parts.literals.exactly(frame.turn) if frame.turn else f"({WHITE})?"
    thought = joined(parts.until(end, "thought"), after)
    return (
        joined(thought, body)
        if frame.begins is Opening.OPENED
        else joined(f"({joined(parts.literals.exactly(start), thought)})?", body)
    )


def content(parts: Parts, wish: Structured, where: str, frame: Frame) -> str:
    """The expression of an answer that is content."""
    return joined(parts.literals.exactly(frame.answer), _answer(parts, wish, where))


def _answer(parts: Parts, wish: Structured, where: str) -> str:
    if wish.json is not None or wish.json_object:
        schema = {"type": "object"} if wish.json_object else wish.json
        return parts.refer("json", prepared(schema, compact=wish.compact), where)
    if wish.regex is not None:
        return parts.refer("regex", wish.regex, where)
    if wish.grammar is not None:
        return parts.refer("grammar", wish.grammar, where)
    if wish.choice:
        return parts.rule("choice", " | ".join(map(quoted, wish.choice)))
    return _tagged(parts, wish.structural_tag, where)


# ---- text in which stretches between tags are JSON, as vLLM has it


def _tagged(parts: Parts, given: Any, where: str) -> str:
    """``{"structures": [{"begin", "schema", "end"}], "triggers": [...]}``, perhaps as text, perhaps with a type."""
    tag = parsed(given) if isinstance(given, str) else given
    structures = tag.get("structures") if isinstance(tag, Mapping) else None
    triggers = tag.get("triggers") if isinstance(tag, Mapping) else None
    if not _is_list(structures, Mapping) or not _is_list(triggers, str):
        raise refused("a structural tag must have structures and triggers", where)
    assert isinstance(structures, list) and isinstance(triggers, list)
    options = []
    for index, structure in enumerate(structures):
        begin, end = structure.get("begin"), structure.get("end")
        if not isinstance(begin, str) or not isinstance(end, str) or "schema" not in structure:
            raise refused("a structure must have begin, schema and end", where)
        trigger = next((t for t in triggers if t and begin.startswith(t)), None)
        if trigger is None:
            raise refused("a structure's begin must start with one of the triggers", where)
        head = joined(parts.until(trigger, f"tag{index}"), parts.literals.exactly(begin[len(trigger) :]))
        body = parts.refer("json", prepared(structure["schema"]), where)
        options.append(joined(head, body, parts.literals.exactly(end)))
    parts.rule("tagged", " | ".join(options))
    parts.rule("rest", TEXT)
    return "tagged* rest"


def _is_list(value: Any, kind: type) -> bool:
    return isinstance(value, list) and 0 < len(value) <= MAX_TAGS and all(isinstance(v, kind) for v in value)


def alternatives(options: Sequence[str]) -> str:
    return options[0] if len(options) == 1 else "(" + " | ".join(options) + ")"
