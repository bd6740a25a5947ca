"""Schemas, regexes and grammars that cost too much are refused within bounds, and those that follow are served."""

from __future__ import annotations

import resource
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from ferrum.errors import FerrumError
from ferrum.structured.wish import Structured
from tests.structured.random_model import RandomModel


@pytest.fixture(scope="module")
def model() -> Iterator[RandomModel]:
    made = RandomModel()
    made.grammars.content(Structured(json_object=True), "x")  # the process is there
    yield made
    made.close()


def chain(length: int) -> dict[str, Any]:
    """Definitions that refer to each other, the last to a text."""
    definitions: dict[str, Any] = {f"d{i}": {"properties": {"a": {"$ref": f"#/$defs/d{i + 1}"}}} for i in range(length)}
    return {"$defs": {**definitions, f"d{length}": {"type": "string"}}, "$ref": "#/$defs/d0"}


def nested(depth: int) -> dict[str, Any]:
    made: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        made = {"type": "array", "items": made}
    return made


HOSTILE: dict[str, Structured] = {
    "deep references": Structured(json=chain(5000)),
    "deep nesting": Structured(json=nested(300)),
    "text nested beyond the parser": Structured(json="[" * 100_000),
    "a million values": Structured(json={"enum": list(range(1_000_000))}),
    "many values": Structured(json={"enum": [f"value {i}" for i in range(150_000)]}),
    "a reference to itself": Structured(json={"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}),
    "coprime multiples": Structured(json={"allOf": [{"type": "integer", "multipleOf": m} for m in (999_983, 999_979, 99_991)]}),
    "a regex of groups": Structured(regex="(" * 5000 + "a" + ")" * 5000),
    "rules without an end": Structured(grammar="start: b\nb: b"),
    "groups in groups": Structured(grammar="start: " + "(" * 20_000 + '"a"' + ")" * 20_000),
    "groups in groups of the other kind": Structured(grammar="root ::= " + "(" * 20_000 + '"a"' + ")" * 20_000),
}


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_hostile_grammars_are_refused_within_bounds(model: RandomModel, name: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF)
    with pytest.raises(FerrumError) as caught:
        model.mask(model.grammars.content(HOSTILE[name], "x"))
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert caught.value.code in ("grammar-refused", "grammar-limit") and caught.value.where == "x"
    assert after.ru_utime - before.ru_utime < 3  # here; the other process has its own bound
    assert model.grammars.content(Structured(choice=["a", "b"]), "x")


# what is cheap until it is followed, a mask having a bound of its own, or within bounds where the processor is fast
LATE: dict[str, Structured] = {
    "as many values as a text may hold": Structured(json={"enum": [f"value {i}" for i in range(60_000)]}),
    "repetitions": Structured(json={"type": "array", "items": {"type": "integer"}, "minItems": 10**6}),
    "long texts": Structured(json={"type": "string", "minLength": 10**9}),
    "a regex of counters": Structured(regex="((a{1,100}){1,100}){1,100}"),
    "a large class repeated": Structured(regex=r"(\p{L}{1,1000}){1,1000}\p{L}{1,100000}x" * 20),
    "a regex that guesses": Structured(regex="(a|b)*a(a|b){40}"),
    "many optional names": Structured(json={"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(900)}}),
    "an ambiguous grammar": Structured(grammar='start: a\na: a a | "x"'),
}


@pytest.mark.parametrize("name", sorted(LATE))
def test_a_grammar_that_becomes_costly_ends_its_own_answer(model: RandomModel, name: str) -> None:
    try:
        grammar = model.grammars.content(LATE[name], "x")
        text, _ = model.answer(grammar, 1, most=60)
        assert text
    except FerrumError as error:
        assert error.code in ("grammar-refused", "grammar-limit", "grammar-failed")


def test_the_process_ends_at_its_bounds_and_answers_are_remembered() -> None:
    model = RandomModel()
    try:
        with pytest.raises(FerrumError, match="too much time or memory"):
            model.grammars.content(HOSTILE["deep references"], "x")
        for _ in range(3):
            with pytest.raises(FerrumError, match="too much time or memory"):
                model.grammars.content(HOSTILE["deep references"], "x")
        assert model.grammars._process._process._child is None  # none was started for these
        results: list[str] = []
        wishes = [Structured(choice=[f"a{i}", "b"]) for i in range(8)]
        threads = [threading.Thread(target=lambda w=w: results.append(model.grammars.content(w, "x"))) for w in wishes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len(set(results)) == 8
    finally:
        model.close()
