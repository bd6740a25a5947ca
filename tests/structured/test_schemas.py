"""Whatever a random model says under a schema keeps to it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ferrum.errors import FerrumError
from ferrum.structured.wish import Structured
from tests.structured.random_model import RandomModel
from tests.structured.schemas import KEYWORDS, schema

FEW = 60
MANY = int(os.environ.get("SCHEMAS", "400"))


@pytest.fixture(scope="module")
def model() -> Iterator[RandomModel]:
    made = RandomModel()
    yield made
    made.close()


@dataclass
class Tally:
    """Of many schemas: which were refused and why, and which answers did not end."""

    total: int = 0
    refused: list[str] = field(default_factory=list)
    unfinished: int = 0
    keywords: set[str] = field(default_factory=set)


def tried(model: RandomModel, numbers: range, answers: int) -> Tally:
    tally = Tally()
    for number in numbers:
        one = schema(number)
        tally.total += 1
        tally.keywords |= keywords_of(one)
        try:
            grammar = model.grammars.content(Structured(json=one), "json")
        except FerrumError as error:
            tally.refused.append(f"{number}: {error.what}")
            continue
        validator = jsonschema.Draft202012Validator(one)
        for seed in range(answers):
            text, ended = model.answer(grammar, seed, most=400)
            if not ended:
                tally.unfinished += 1
                continue
            problems = [e.message for e in validator.iter_errors(json.loads(text))]
            assert not problems, (number, seed, one, text, problems)
    return tally


def keywords_of(value: Any) -> set[str]:
    if isinstance(value, list):
        return set[str]().union(*map(keywords_of, value))
    return {k for k in value if k in KEYWORDS}.union(*map(keywords_of, value.values())) if isinstance(value, dict) else set()


def test_answers_keep_to_sixty_schemas(model: RandomModel) -> None:
    tally = tried(model, range(FEW), answers=1)
    assert len(tally.refused) <= 0.05 * tally.total, tally.refused
    assert tally.unfinished <= 0.2 * tally.total


NAMES = st.text(max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(-1e6, 1e6).map(lambda x: round(x, 3)) | NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(VALUES, min_size=1, max_size=3), st.integers(0, 99))
def test_an_answer_of_listed_values_is_one_of_them(model: RandomModel, values: list[Any], seed: int) -> None:
    grammar = model.grammars.content(Structured(json={"enum": values}), "json")
    text, ended = model.answer(grammar, seed, most=400)
    assert not ended or json.loads(text) in values


@pytest.mark.slow
def test_answers_keep_to_many_schemas(model: RandomModel) -> None:
    tally = tried(model, range(1000, 1000 + MANY), answers=3)
    print(f"{tally.total} schemas, {len(tally.refused)} refused, {tally.unfinished} answers cut off", *tally.refused, sep="\n")
    assert len(tally.refused) <= 0.05 * tally.total, tally.refused
    assert tally.unfinished <= 0.2 * 3 * tally.total
    assert tally.keywords == KEYWORDS
