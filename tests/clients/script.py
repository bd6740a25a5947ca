"""What a larger model would say, as token ids for the engine that stands in for one: calls, answers to results, JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from ferrum.engine.params import SamplingParams
from tests.server.fake import FakeBackend
from tests.server.harness import tokenizer

PERSON = {"name": "Ada", "age": 36}
ARGUMENTS = {"add": {"a": 2, "b": 3}}
_DECLARED = re.compile(r"<tools>\n(\w+)\(")


def reply(prompt: str) -> str:
    """To a tool's result its text; where a tool is declared a call of it; about Ada in JSON; else a sentence."""
    asked = prompt.rpartition("<|im_start|>user")[2]
    if "<tool_response>" in asked or "<|im_start|>tool" in prompt:
        return "The result is 5."
    if declared := _DECLARED.search(prompt):
        name = declared[1]
        return f"<tool_call>\n{json.dumps({'name': name, 'arguments': ARGUMENTS.get(name, PERSON)})}\n</tool_call>"
    return json.dumps(PERSON) if "Ada" in asked else "This is said by the script."


def scripted() -> FakeBackend:
    def ids(prompt: Sequence[int], params: SamplingParams, index: int) -> list[int]:
        return tokenizer().encode(reply(tokenizer().decode(list(prompt), skip_special=False)), special=False)

    return FakeBackend(ids, max_model_len=1 << 17)
