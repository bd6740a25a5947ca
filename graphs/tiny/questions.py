"""The fixed 500 held-out questions, and the exact check of an answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from random import Random

from ferrum.graphs.tiny.data import Problem, held_out_problem

SEED = 20240229
COUNTS: dict[str, int] = {
    "sum": 80,
    "difference": 80,
    "copy": 50,
    "reverse": 50,
    "sort": 60,
    "fact": 20,
    "recall": 50,
    "json": 50,
    "tool": 45,
    "tool_answer": 15,
}


def questions(per_category: dict[str, int] | None = None) -> list[Problem]:
    """The 500 questions in a fixed order, all different in content; or the first few of each category."""
    result: list[Problem] = []
    for category, count in COUNTS.items():
        rng = Random(f"{SEED} {category}")
        seen: set[str] = set()
        while len(seen) < count:
            problem = held_out_problem(rng, category)
            if problem.key not in seen:
                seen.add(problem.key)
                result.append(problem)
    if per_category is None:
        return result
    left = dict(per_category)
    chosen = []
    for problem in result:
        if left.get(problem.category, 0) > 0:
            left[problem.category] -= 1
            chosen.append(problem)
    return chosen


def is_right(problem: Problem, text: str) -> bool:
    """Exact: text equal to the answer; JSON and tool calls equal as JSON values, with nothing around them."""
    if problem.check == "text":
        return text == problem.answer
    head, tail = ("<tool_call>", "</tool_call>") if problem.check == "tool" else ("", "")
    if not (text.startswith(head) and text.endswith(tail)):
        return False
    try:
        given = json.loads(text[len(head):len(text) - len(tail)])
    except ValueError:
        return False
    return bool(given == json.loads(problem.answer[len(head):len(problem.answer) - len(tail)]))


def accuracy(problems: Sequence[Problem], texts: Sequence[str]) -> tuple[dict[str, tuple[int, int]], list[tuple[Problem, str]]]:
    """(right, asked) per category and for all as ``total``; and every problem that was answered wrong, with the answer."""
    table: dict[str, tuple[int, int]] = {}
    wrong = []
    for problem, text in zip(problems, texts, strict=True):
        fine = is_right(problem, text)
        if not fine:
            wrong.append((problem, text))
        for row in (problem.category, "total"):
            right, asked = table.get(row, (0, 0))
            table[row] = right + fine, asked + 1
    return table, wrong
