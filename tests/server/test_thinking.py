"""A bound on reasoning, by every name that clients give it, and through a real engine to the text that comes out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anthropic
import msgspec
import pytest

from ferrum.engine.thinking import ThinkingBudget
from ferrum.llm import LLM, SamplingParams
from ferrum.text.reasoning import Opening, ReasoningSplitter
from tests.engine.null_pack import token, write_null_pack
from tests.server.fake import FakeBackend
from tests.server.harness import TEXT, Running, running, tokenizer

# stand-ins for marks that are single tokens of this tokenizer
MARKS = {"reasoning_start": "<|im_start|>", "reasoning_end": "<|im_end|>"}
REASONS = msgspec.structs.replace(TEXT, **MARKS)


def backend() -> FakeBackend:
    ids = tokenizer().encode("x", special=False)
    return FakeBackend(lambda prompt, params, index: ids)


def budget_of(server: Running, **fields: Any) -> ThinkingBudget | None:
    status, body, _ = server.chat(**fields)
    assert status == 200, body
    return server.backend.requests[-1][1].thinking


def test_names_of_a_budget() -> None:
    with running(backend(), REASONS) as server:
        for fields in (
            {"reasoning": {"max_tokens": 7}},
            {"thinking": {"type": "enabled", "budget_tokens": 7}},
            {"thinking_token_budget": 7},
            {"reasoning_budget": 7},
            {"reasoning": {"max_tokens": 7}, "thinking_token_budget": 7, "reasoning_budget": -1},
        ):
            budget = budget_of(server, **fields)
            assert budget is not None and budget.tokens == 7, fields
            assert budget.end == tokenizer().token_id("<|im_end|>"), fields
        for fields in ({}, {"thinking_token_budget": -1}, {"reasoning": {}}, {"reasoning": {"max_tokens": None}}):
            assert budget_of(server, **fields) is None
        status, body, _ = server.chat(reasoning={"max_tokens": 7}, thinking_token_budget=8)
        assert status == 400 and "differ" in body["error"]["message"]
        for wrong in ({"reasoning": {"max_tokens": -1}}, {"thinking_token_budget": -2}, {"reasoning": {"exclude": True}}):
            assert server.chat(**wrong)[0] == 400
        client = anthropic.Anthropic(base_url=server.url, api_key="unused", max_retries=0)
        client.messages.create(
            model="tiny",
            max_tokens=2000,
            messages=[{"role": "user", "content": "hi"}],
            thinking={"type": "enabled", "budget_tokens": 1024},
        )
        found = server.backend.requests[-1][1].thinking
        assert found is not None and found.tokens == 1024


def test_an_effort_is_a_share_of_the_answer() -> None:
    with running(backend(), REASONS) as server:
        server.state.template = Thinks(server.state.template)
        found = {e: budget_of(server, reasoning_effort=e, max_tokens=100) for e in ("none", "low", "medium", "high")}
        assert {e: b and b.tokens for e, b in found.items()} == {"none": None, "low": 20, "medium": 50, "high": None}
        nested = budget_of(server, reasoning={"effort": "low"}, max_tokens=100)
        assert nested is not None and nested.tokens == 20


class Thinks:
    """A template that can switch thinking on."""

    def __init__(self, template: Any) -> None:
        self._template = template

    def takes(self, name: str) -> bool:
        return name == "enable_thinking"

    def render(self, messages: Any, **fields: Any) -> str:
        assert set(fields.pop("options")) <= {"enable_thinking"}
        return str(self._template.render(messages, options={}, **fields))


def test_where_a_budget_cannot_be_kept() -> None:
    with running(backend()) as server:
        status, body, _ = server.chat(thinking_token_budget=5)
        assert (
            status == 400 and body["error"]["param"] == "thinking_token_budget" and "does not reason" in body["error"]["message"]
        )
    pieces = msgspec.structs.replace(TEXT, reasoning_start="<think>", reasoning_end="</think>")
    with running(backend(), pieces) as server:
        status, body, _ = server.chat(reasoning={"max_tokens": 5})
        assert status == 400 and body["error"]["param"] == "reasoning.max_tokens"


@pytest.mark.parametrize("limit", [0, 1, 9])
def test_through_a_real_engine(tmp_path: Path, limit: int) -> None:
    """The null device's model would reason for ever."""
    pack = write_null_pack(tmp_path / "x.fpk")
    params = SamplingParams(
        temperature=0,
        max_tokens=20,
        logit_bias={token("}"): -100.0},
        ignore_eos=True,
        thinking=ThinkingBudget(tokens=limit, start=token("{"), end=token("}"), opened=True),
    )
    with LLM(pack, device="null", trust=True) as llm:
        text = llm.generate(["hello{"], params)[0].text
    splitter = ReasoningSplitter("{", "}", Opening.OPENED)
    reasoning, content, _ = splitter.feed(text)
    assert len(text) == 20 and text.index("}") == limit and len(reasoning) <= limit and content.strip()
