"""The 500 questions: fixed, kept out of training, checked exactly."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from random import Random

import pytest

from ferrum.graphs.tiny.data import MAKERS, assistant, training_chat
from ferrum.graphs.tiny.questions import COUNTS, is_right, questions
from ferrum.graphs.tiny.training.train import SHARES


def test_five_hundred_different_questions_in_a_fixed_order() -> None:
    asked = questions()
    assert len(asked) == 500 and Counter(p.category for p in asked) == COUNTS
    assert len({p.key for p in asked}) == 500
    text = json.dumps([[p.messages, p.answer, p.tools] for p in asked])
    assert text == json.dumps([[p.messages, p.answer, p.tools] for p in questions()])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "2a7110a00116d114", (
        "the questions changed: figures are not comparable any more"
    )


def test_training_never_meets_a_held_out_question() -> None:
    asked = {json.dumps([p.messages[-1], p.answer]) for p in questions() if p.category not in ("recall", "tool_answer")}
    whole = [json.dumps([*p.messages, assistant(p.answer)]) for p in questions() if p.category in ("recall", "tool_answer")]
    rng = Random(99)
    for _ in range(8_000):
        messages, _ = training_chat(rng, SHARES)
        turns = {json.dumps([q, a["content"]]) for q, a in zip(messages, messages[1:], strict=False) if a["role"] == "assistant"}
        assert not turns & asked
        chat = json.dumps(messages)
        assert not any(w[1:-1] in chat for w in whole)


def test_sums_are_held_out_in_every_wording_and_order() -> None:
    held = {p.key for p in questions() if p.category == "sum"}
    rng = Random(5)
    problems = [MAKERS["sum"](rng) for _ in range(20_000)]
    assert {p.messages[0]["content"] for p in problems if p.key in held} and all(p.held_out for p in problems if p.key in held)


def test_answers_are_right() -> None:
    for problem in questions():
        assert is_right(problem, problem.answer)
        if problem.category in ("sum", "difference"):
            _, a, b = problem.key.split()
            assert int(problem.answer) == (int(a) + int(b) if problem.category == "sum" else int(a) - int(b))


@pytest.mark.parametrize("category", COUNTS)
def test_near_misses_are_wrong(category: str) -> None:
    problem = questions({category: 1})[0]
    for wrong in ("", problem.answer + " ", problem.answer + "<|im_end|>", "x" + problem.answer, problem.answer[:-1], "null"):
        assert not is_right(problem, wrong) or problem.check == "json" and wrong == problem.answer + " "


def test_json_is_compared_as_json() -> None:
    problem = questions({"tool": 1})[0]
    inside = json.loads(problem.answer.removeprefix("<tool_call>").removesuffix("</tool_call>"))
    assert is_right(problem, "<tool_call>" + json.dumps(dict(reversed(inside.items())), indent=1) + "</tool_call>")
    assert not is_right(problem, json.dumps(inside))
