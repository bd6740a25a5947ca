"""Reasoning: what is thought and what is said, however the text is cut."""

from __future__ import annotations

import random

import pytest

from ferrum.text.reasoning import Opening, ReasoningSplitter, find_reasoning, opening

UNKNOWN, OPENED, CLOSED = Opening
CASES = [
    ("<think>\nhm\n</think>\n\nHi", UNKNOWN, ("hm", "Hi")),
    ("\n<think>a\n\nb</think>c", UNKNOWN, ("a\n\nb", "c")),
    ("<think>\n\n</think>\n\nHi\n", UNKNOWN, ("", "Hi\n")),
    ("hm</think>Hi", OPENED, ("hm", "Hi")),
    ("\n\nhm", OPENED, ("hm", "")),
    ("\n\nHi </think>", CLOSED, ("", "Hi </think>")),
    ("no tags <think>x</think>", UNKNOWN, ("", "no tags <think>x</think>")),
    ("Hm, well. \n</think>\n\nHi <think>", UNKNOWN, ("Hm, well.", "Hi <think>")),
    ("</think>Hi", UNKNOWN, ("", "Hi")),
    ("a < b </ c", UNKNOWN, ("", "a < b </ c")),
    ("<thin", UNKNOWN, ("", "<thin")),
    ("<think>never ends </thi", UNKNOWN, ("never ends </thi", "")),
    ("  ", UNKNOWN, ("", "  ")),
    ("<think>a</think>b</think>c", UNKNOWN, ("a", "b</think>c")),
    ("<think>a < b </ c</think>", UNKNOWN, ("a < b </ c", "")),
]


@pytest.mark.parametrize(("text", "begins", "expected"), CASES)
def test_split(text: str, begins: Opening, expected: tuple[str, str]) -> None:
    rng = random.Random(text)
    for attempt in range(100):
        splitter = ReasoningSplitter(begins=begins)
        reasoning = content = ""
        at = 0
        while at < len(text):
            size = len(text) if attempt == 0 else 1 if attempt == 1 else rng.randint(1, 6)
            split = splitter.feed(text[at : at + size])
            if split.closes:
                reasoning, content = reasoning + content, ""
            reasoning, content, at = reasoning + split.reasoning, content + split.content, at + size
        split = splitter.finish()
        assert (reasoning + split.reasoning, content + split.content) == expected


def test_reasoning_leaves_as_it_comes() -> None:
    splitter = ReasoningSplitter()
    splitter.feed("<think>")
    assert splitter.feed("first ").reasoning == "first"
    assert splitter.feed("second <").reasoning == " second"
    assert splitter.feed("b").reasoning == " <b"


def test_where_a_prompt_leaves_the_model() -> None:
    assert opening("<|im_start|>assistant\n<think>\n", "<think>", "</think>") is OPENED
    assert opening("<think>\n\n</think>\n\n", "<think>", "</think>") is CLOSED
    assert opening("<|im_start|>assistant\n", "<think>", "</think>") is UNKNOWN
    assert opening("anything", "", "") is UNKNOWN


def test_marks_are_found_in_templates() -> None:
    assert find_reasoning("{% set c = c.split('</think>')[-1] %}") == ("<think>", "</think>")
    assert find_reasoning("{% if enable_thinking %}") == ("<think>", "</think>")
    assert find_reasoning("[THINK]{{ x }}[/THINK]") == ("[THINK]", "[/THINK]")
    assert find_reasoning("<|channel|>analysis<|message|> <think></think>")[1] == "<|end|>"
    assert find_reasoning("{{ messages }}") == ("", "")
