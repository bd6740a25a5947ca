"""How a rendered prompt ends: in the middle of the assistant's last message, or behind a reasoning that is closed already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ferrum.errors import FerrumError
from ferrum.text.reasoning import SHARED_ENDS, Opening, opening

_MARK = "\ue000ferrum goes on from here\ue000"  # of a private area: no conversation has it


def with_mark(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """``messages`` whose last one, a text of the assistant, ends with a mark that is seen in what a template makes of it."""
    last = dict(messages[-1])
    content = last["content"]
    if isinstance(content, str):
        last["content"] = content + _MARK
    else:
        *others, part = content
        last["content"] = [*others, {**part, "text": part["text"] + _MARK}]
    return [*map(dict, messages[:-1]), last]


def up_to_mark(text: str) -> str:
    """The prompt as far as the last message goes, without what the template puts behind it. Raises FerrumError where the
    template does not show the message."""
    before, mark, _ = text.rpartition(_MARK)
    if not mark:
        what = "the model's chat template does not show the last message, so it cannot be continued"
        raise FerrumError("template-refused", what, "messages")
    return before


def without_reasoning(text: str, start: str, end: str) -> str:
    """A prompt behind which the model does not reason, though its template has no switch for that: the reasoning is empty."""
    if not (start and end) or end in SHARED_ENDS:
        return text
    begins = opening(text, start, end)
    if begins is Opening.CLOSED:
        return text
    return text + (end if begins is Opening.OPENED else start + end)
