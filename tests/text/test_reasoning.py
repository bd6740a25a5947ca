"""Reasoning: what is thought and what is said, however the text is cut."""

from __future__ import annotations

import random

import pytest

from ferrum.text.reasoning import ReasoningSplitter, prompt_opens

CASES = [
    ("<think>\nhm\n</think>\n\nHi", False, ("hm", "Hi")),
    ("\n<think>a\n\nb</think>c", False, ("a\n\nb", "c")),
    ("<think>\n\n</think>\n\nHi\n", False, ("", "Hi\n")),
    ("hm</think>Hi", True, ("hm", "Hi")),
    ("\n\nhm", True, ("hm", "")),
    ("no tags <think>x</think>", False, ("", "no tags <think>x</think>")),
    ("<thin", False, ("", "<thin")),
    ("<think>never ends </thi", False, ("never ends </thi", "")),
    ("  ", False, ("", "  ")),
    ("<think>a</think>b</think>c", False, ("a", "b</think>c")),
    ("<think>a < b </ c</think>", False, ("a < b </ c", "")),
]


@pytest.mark.parametrize(("text", "opened", "expected"), CASES)
def test_split(text: str, opened: bool, expected: tuple[str, str]) -> None:
    rng = random.Random(text)
    for attempt in range(100):
        splitter = ReasoningSplitter(opened=opened)
        reasoning = content = ""
        at = 0
        while at < len(text):
            size = len(text) if attempt == 0 else 1 if attempt == 1 else rng.randint(1, 6)
            split = splitter.feed(text[at : at + size])
            reasoning, content, at = reasoning + split.reasoning, content + split.content, at + size
        split = splitter.finish()
        assert (reasoning + split.reasoning, content + split.content) == expected


def test_reasoning_leaves_as_it_comes() -> None:
    splitter = ReasoningSplitter()
    splitter.feed("<think>")
    assert splitter.feed("first ").reasoning == "first"
    assert splitter.feed("second <").reasoning == " second"
    assert splitter.feed("b").reasoning == " <b"


def test_prompts_that_open_it() -> None:
    assert prompt_opens("<|im_start|>assistant\n<think>\n", "<think>")
    assert not prompt_opens("<think>\n\n</think>\n\n", "<think>")
    assert not prompt_opens("anything", "")
