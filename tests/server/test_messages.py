"""Anthropic's Messages API: the `anthropic` package as it is, and what is refused by name."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import anthropic
import msgspec
import pytest

from ferrum.errors import FerrumError
from tests.server.harness import TEXT, Running, running, says, tokenizer
from tests.server.test_streams import eventually

ANSWER = "Hëllo wörld, 2+2=4.\nBye!"
USER: Any = [{"role": "user", "content": "hi"}]
TOOL: Any = {"name": "add", "description": "adds", "input_schema": {"type": "object", "properties": {"a": {"type": "integer"}}}}
CALL = '\n<tool_call>\n{"name": "add", "arguments": %s}\n</tool_call>'
CALLS = "Let me see." + CALL % '{"a": 2}' + CALL % "{}"
THINKING = msgspec.structs.replace(TEXT, reasoning_start="<think>", reasoning_end="</think>")


def client(server: Running, key: str = "unused") -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key=key, max_retries=0, timeout=20)


def texts_of(message: Any) -> list[str]:
    return [block.text for block in message.content if block.type == "text"]


def prompt_of(server: Running) -> str:
    return tokenizer().decode(server.backend.requests[-1][0], skip_special=False)


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(says(ANSWER)) as made:
        yield made


def test_a_message(server: Running) -> None:
    more = {"temperature": 0.5, "top_k": 3}
    done = client(server).messages.create(model="tiny", max_tokens=100, messages=USER, system="Be kind.", extra_body=more)
    assert texts_of(done) == [ANSWER] and done.stop_reason == "end_turn" and done.stop_sequence is None
    assert done.role == "assistant" and done.model == "tiny" and done.id.startswith("msg_")
    prompt, params = server.backend.requests[-1]
    assert (
        done.usage.input_tokens == len(prompt) and done.usage.output_tokens == len(tokenizer().encode(ANSWER, special=False)) + 1
    )
    assert (params.max_tokens, params.temperature, params.top_k) == (100, 0.5, 3)
    assert "Be kind." in prompt_of(server)


def test_cached_tokens_are_counted_apart() -> None:
    backend = says("x")
    backend.cached_tokens = 7
    with running(backend) as server:
        usage = client(server).messages.create(model="tiny", max_tokens=5, messages=USER).usage
        assert usage.cache_read_input_tokens == 7 and usage.input_tokens == len(backend.requests[0][0]) - 7


def test_a_stream(server: Running) -> None:
    with client(server).messages.stream(model="tiny", max_tokens=100, messages=USER) as stream:
        texts = list(stream.text_stream)
        final = stream.get_final_message()
    assert "".join(texts) == ANSWER and len(texts) > 5
    whole = client(server).messages.create(model="tiny", max_tokens=100, messages=USER)
    assert final.model_dump(exclude={"id"}, exclude_none=True) == whole.model_dump(exclude={"id"}, exclude_none=True)
    raw = server.post("/v1/messages", {"model": "tiny", "max_tokens": 3, "messages": USER, "stream": True})[1]
    names = [line.removeprefix("event: ") for line in raw.split("\n") if line.startswith("event: ")]
    assert names[:2] == ["message_start", "content_block_start"]
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert "[DONE]" not in raw and '"stop_reason":"max_tokens"' in raw


def test_the_asynchronous_client(server: Running) -> None:
    async def work() -> tuple[str, str]:
        made = anthropic.AsyncAnthropic(base_url=server.url, api_key="unused", max_retries=0, timeout=20)
        async with made, made.messages.stream(model="tiny", max_tokens=100, messages=USER) as stream:
            streamed = "".join([text async for text in stream.text_stream])
            done = await made.messages.create(model="tiny", max_tokens=100, messages=USER)
        return streamed, texts_of(done)[0]

    assert asyncio.run(work()) == (ANSWER, ANSWER)


def test_stop_sequences(server: Running) -> None:
    done = client(server).messages.create(model="tiny", max_tokens=100, messages=USER, stop_sequences=["zzz", "wörld"])
    assert texts_of(done) == ["Hëllo "] and done.stop_reason == "stop_sequence" and done.stop_sequence == "wörld"


def test_tools_there_and_back() -> None:
    with running(says(CALLS)) as server:
        ask: Any = client(server).messages.create
        done = ask(model="tiny", max_tokens=200, messages=USER, tools=[TOOL], tool_choice={"type": "auto"})
        assert [b.type for b in done.content] == ["text", "tool_use", "tool_use"] and done.stop_reason == "tool_use"
        assert [(b.name, b.input) for b in done.content[1:]] == [("add", {"a": 2}), ("add", {})]
        with client(server).messages.stream(model="tiny", max_tokens=200, messages=USER, tools=[TOOL]) as stream:
            events = [e.type for e in stream]
            final = stream.get_final_message()
        assert "input_json" in events and [b.type for b in final.content] == [b.type for b in done.content]
        assert [b.input for b in final.content if b.type == "tool_use"] == [{"a": 2}, {}]
        five = [{"type": "text", "text": "5"}]
        results = [{"type": "tool_result", "tool_use_id": b.id, "content": five} for b in done.content[1:]]
        answered = {"role": "user", "content": [*results, {"type": "text", "text": "and?"}]}
        follow = [*USER, {"role": "assistant", "content": done.content}, answered]
        ask(model="tiny", max_tokens=9, messages=follow, tools=[TOOL])
        prompt = prompt_of(server)
        assert '{"name": "add", "arguments": {"a": 2}}' in prompt and "<tool_response>\n5" in prompt and "and?" in prompt
        single = {"type": "auto", "disable_parallel_tool_use": True}
        one = ask(model="tiny", max_tokens=99, messages=USER, tools=[TOOL], tool_choice=single)
        assert [b.type for b in one.content] == ["text", "tool_use"]
        off = ask(model="tiny", max_tokens=99, messages=USER, tools=[TOOL], tool_choice={"type": "none"})
        assert [b.type for b in off.content] == ["text"]


def test_thinking_there_and_back() -> None:
    with running(says("<think>\nhm, 2\n</think>\n\n4"), THINKING) as server:
        ask: Any = client(server).messages
        for thinking in ({"type": "enabled", "budget_tokens": 1024}, {"type": "adaptive"}):
            done = ask.create(model="tiny", max_tokens=2000, messages=USER, thinking=thinking)
            assert [b.type for b in done.content] == ["thinking", "text"]
            assert done.content[0].thinking == "hm, 2" and texts_of(done) == ["4"]
        with ask.stream(model="tiny", max_tokens=2000, messages=USER) as stream:
            thought = "".join(e.thinking for e in stream if e.type == "thinking")
        assert thought == "hm, 2"
        ask.create(model="tiny", max_tokens=20, messages=[*USER, {"role": "assistant", "content": done.content}, *USER])
        assert prompt_of(server).count("4") >= 1


def test_an_answer_cut_inside_of_its_thinking_still_has_a_text() -> None:
    with running(says("<think>\nhm hm hm" + " hm" * 99), THINKING) as server:
        done = client(server).messages.create(model="tiny", max_tokens=40, messages=USER)
        assert [b.type for b in done.content] == ["thinking", "text"] and done.stop_reason == "max_tokens"


def test_counting_is_what_a_message_takes(server: Running) -> None:
    fields: Any = {"model": "tiny", "messages": USER, "system": [{"type": "text", "text": "Be kind."}], "tools": [TOOL]}
    counted = client(server).messages.count_tokens(**fields).input_tokens
    assert counted == client(server).messages.create(max_tokens=5, **fields).usage.input_tokens


def test_hints_of_agents_are_taken(server: Running) -> None:
    cached = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    body: dict[str, Any] = {
        "model": "tiny",
        "max_tokens": 5,
        "metadata": {"user_id": "u"},
        "service_tier": "auto",
        "cache_control": {"type": "ephemeral"},
        "system": [{"type": "text", "text": "s", **cached}],
        "tools": [{**TOOL, "type": "custom", **cached}],
        "stop_sequences": [],
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hi", **cached}]}],
        "mcp_servers": [],
        "top_p": None,
        "context_management": {"edits": []},
        "output_config": {"effort": "high"},
        "thinking": {"type": "adaptive", "display": "omitted"},
    }
    status, answer, _ = server.post("/v1/messages?beta=true", body, anthropic_version="2023-06-01", anthropic_beta="x")
    assert status == 200, answer
    assert server.post("/messages", body)[0] == 200


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 100_000}, "max_tokens"),
        ({"frobnicate": 1}, "frobnicate"),
        ({"temperature": 9.0}, "temperature"),
        ({"stop_sequences": ["a"] * 5}, "stop_sequences"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "nobody"}}, "tool_choice"),
        ({"output_format": {"type": "json_schema", "schema": {"not": {}}}}, "output_format"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages"),
        ({"messages": [*USER, {"role": "assistant", "content": []}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "thinking", "thinking": "x"}]}]}, "messages"),
        ({"messages": []}, "messages"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config"),
        ({"container": "c"}, "container"),
        ({"mcp_servers": [{"url": "http://x"}]}, "mcp_servers"),
    ],
)
def test_refused_by_name(server: Running, fields: dict[str, Any], named: str) -> None:
    status, answer, _ = server.post("/v1/messages", {"model": "tiny", "max_tokens": 5, "messages": USER, **fields})
    assert status == 400 and answer["type"] == "error" and answer["error"]["type"] == "invalid_request_error", answer
    assert named in answer["error"]["message"] and answer["request_id"]


def test_errors_are_the_clients_own_exceptions(server: Running) -> None:
    ask = client(server).messages.create
    with pytest.raises(anthropic.NotFoundError):
        ask(model="claude-9", max_tokens=5, messages=USER)
    with pytest.raises(anthropic.BadRequestError):
        ask(model="tiny", max_tokens=5, messages=USER, extra_body={"temperature": 9})
    with running(says("x"), api_key="secret-key-1") as locked:
        with pytest.raises(anthropic.AuthenticationError):
            client(locked, "other").messages.create(model="tiny", max_tokens=5, messages=USER)
        assert client(locked, "secret-key-1").messages.create(model="tiny", max_tokens=5, messages=USER).content


def test_an_error_inside_a_stream() -> None:
    backend = says("abcdefgh" * 40)
    backend.token_seconds = 0.01
    with running(backend) as server, client(server).messages.stream(model="tiny", max_tokens=300, messages=USER) as stream:
        texts = stream.text_stream
        next(texts)
        assert eventually(lambda: backend.tokens > 3)
        server.run(lambda: [g.fail(FerrumError("engine-died", "gone")) for g in list(backend.live)])
        with pytest.raises(anthropic.APIStatusError):
            list(texts)
