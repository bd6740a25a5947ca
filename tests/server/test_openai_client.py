"""The `openai` package as it is, against the server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import openai
import pytest

from tests.server.fake import FakeBackend
from tests.server.harness import TEXT, Running, echoes, running, says, seeded, tokenizer

ANSWER = "Hëllo wörld, 2+2=4.\nBye!"
USER: Any = [{"role": "user", "content": "hi"}]
TOOL: Any = {
    "type": "function",
    "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}},
}


def client(server: Running, key: str = "unused") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=20)


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(says(ANSWER)) as made:
        yield made


def test_chat(server: Running) -> None:
    done = client(server).chat.completions.create(model="tiny", messages=USER)
    assert done.choices[0].message.content == ANSWER and done.choices[0].finish_reason == "stop"
    ids = tokenizer().encode(ANSWER, special=False)
    assert done.usage is not None and done.usage.completion_tokens == len(ids) + 1
    assert done.usage.total_tokens == done.usage.prompt_tokens + len(ids) + 1
    assert done.model == "tiny" and done.object == "chat.completion" and done.id.startswith("chatcmpl-")


def test_stream_is_the_same_text(server: Running) -> None:
    stream = client(server).chat.completions.create(
        model="tiny", messages=USER, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[0].choices[0].delta.content == ""
    texts = [c.choices[0].delta.content for c in chunks[1:] if c.choices and c.choices[0].delta.content]
    assert "".join(texts) == ANSWER and len(texts) > 5
    assert all(c.choices[0].delta.role is None for c in chunks[1:-1])
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == [] and chunks[-1].usage is not None and chunks[-1].usage.completion_tokens > 5
    assert all(c.usage is None for c in chunks[:-1]) and len({c.id for c in chunks}) == 1


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        ("2+2", "Hëllo wörld, "),
        (["nothing", "\n"], "Hëllo wörld, 2+2=4."),
        (["wörld, 2", "ld"], "Hëllo wör"),
        (["Hë"], ""),
        ([ANSWER], ""),
        ("lost", ANSWER),
    ],
)
def test_stop(server: Running, stop: str | list[str], expected: str) -> None:
    done = client(server).chat.completions.create(model="tiny", messages=USER, stop=stop)
    assert done.choices[0].message.content == expected and done.choices[0].finish_reason == "stop"
    stream = client(server).chat.completions.create(model="tiny", messages=USER, stop=stop, stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in stream) == expected


def test_length(server: Running) -> None:
    done = client(server).chat.completions.create(model="tiny", messages=USER, max_tokens=100, max_completion_tokens=3)
    assert done.choices[0].finish_reason == "length" and done.usage is not None and done.usage.completion_tokens == 3


def test_logprobs(server: Running) -> None:
    done = client(server).chat.completions.create(model="tiny", messages=USER, logprobs=True, top_logprobs=3, stop="wör")
    logprobs = done.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert b"".join(bytes(t.bytes or []) for t in logprobs.content).decode() == "Hëllo "
    assert all(len(t.top_logprobs) == 3 and t.logprob == -0.5 for t in logprobs.content)
    stream = client(server).chat.completions.create(model="tiny", messages=USER, logprobs=True, stream=True)
    found: list[int] = []
    for chunk in stream:
        scores = chunk.choices[0].logprobs
        found += [b for t in (scores.content if scores and scores.content else []) for b in t.bytes or []]
    assert bytes(found).decode() == ANSWER
    assert client(server).chat.completions.create(model="tiny", messages=USER).choices[0].logprobs is None


def test_n_and_seed() -> None:
    with running(FakeBackend(seeded)) as server:
        ask = client(server).chat.completions.create
        first, again, other = (ask(model="tiny", messages=USER, n=3, seed=s) for s in (5, 5, 6))
        texts = [[c.message.content for c in done.choices] for done in (first, again, other)]
        assert texts[0] == texts[1] != texts[2] and len(set(texts[0])) == 3
        assert [c.index for c in first.choices] == [0, 1, 2]
        assert first.usage is not None and first.usage.completion_tokens == 3 * 13
        parts = ["", "", ""]
        for chunk in ask(model="tiny", messages=USER, n=3, seed=5, stream=True):
            parts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
        assert parts == texts[0]
        assert server.backend.requests[0][1].seed == 5


def test_completions() -> None:
    with running(echoes()) as server:
        ask = client(server).completions.create
        done = ask(model="tiny", prompt="a b c d")
        assert done.choices[0].text == "a b c d" and done.object == "text_completion"
        many = ask(model="tiny", prompt=["one", "two"], n=2, logprobs=1)
        assert [c.text for c in many.choices] == ["one", "one", "two", "two"] and [c.index for c in many.choices] == [0, 1, 2, 3]
        scores = many.choices[2].logprobs
        assert scores is not None and "".join(scores.tokens or []) == "two" and (scores.text_offset or [])[0] == 0
        assert ask(model="tiny", prompt=[71, 72]).choices[0].text == tokenizer().decode([71, 72])
        assert [c.text for c in ask(model="tiny", prompt=[[71], [72]]).choices] == [tokenizer().decode([t]) for t in (71, 72)]
        assert len(server.backend.requests[-1][0]) == 1
        parts = ["", ""]
        for chunk in ask(model="tiny", prompt=["one", "two"], stream=True):
            parts[chunk.choices[0].index] += chunk.choices[0].text
        assert parts == ["one", "two"]
        assert ask(model="tiny", prompt="x" * 40).usage.completion_tokens == 9  # type: ignore[union-attr]


def test_tool_calls() -> None:
    call = '<tool_call>\n{"name": "add", "arguments": {"a": %d}}\n</tool_call>'
    text = f"Let me see.\n{call % 2}\n{call % 3}"
    with running(says(text)) as server:
        ask = client(server).chat.completions.create
        done = ask(model="tiny", messages=USER, tools=[TOOL])
        message: Any = done.choices[0].message
        assert done.choices[0].finish_reason == "tool_calls" and message.content == "Let me see."
        assert [(c.function.name, json.loads(c.function.arguments)) for c in message.tool_calls] == [
            ("add", {"a": 2}),
            ("add", {"a": 3}),
        ]
        assert len({c.id for c in message.tool_calls}) == 2
        names: dict[int, str] = {}
        arguments: dict[int, str] = {}
        for chunk in ask(model="tiny", messages=USER, tools=[TOOL], tool_choice="auto", stream=True):
            for call in chunk.choices[0].delta.tool_calls or []:
                assert call.function is not None
                if call.id:
                    assert call.index not in names and call.function.name and call.type == "function"
                    names[call.index] = call.function.name
                arguments[call.index] = arguments.get(call.index, "") + (call.function.arguments or "")
        assert names == {0: "add", 1: "add"} and [json.loads(a) for a in arguments.values()] == [{"a": 2}, {"a": 3}]
        one = ask(model="tiny", messages=USER, tools=[TOOL], parallel_tool_calls=False).choices[0]
        assert one.message.tool_calls is not None and len(one.message.tool_calls) == 1 and one.finish_reason == "tool_calls"
        off = ask(model="tiny", messages=USER, tools=[TOOL], tool_choice="none").choices[0]
        assert off.message.content == text and off.message.tool_calls is None and off.finish_reason == "stop"
        follow = [*USER, message, {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "5"}]
        ask(model="tiny", messages=follow, tools=[TOOL])
        prompt = tokenizer().decode(server.backend.requests[-1][0], skip_special=False)
        assert '{"name": "add", "arguments": {"a": 2}}' in prompt and "<tool_response>\n5" in prompt


def test_reasoning() -> None:
    text = msgspec.structs.replace(TEXT, reasoning_start="<think>", reasoning_end="</think>")
    with running(says("<think>\nhm, 2\n</think>\n\n4"), text) as server:
        message: Any = client(server).chat.completions.create(model="tiny", messages=USER).choices[0].message
        assert message.content == "4" and message.reasoning_content == "hm, 2"
        parts = {"content": "", "reasoning_content": ""}
        for chunk in client(server).chat.completions.create(model="tiny", messages=USER, stream=True):
            for name in parts:
                parts[name] += getattr(chunk.choices[0].delta, name, None) or ""
        assert parts == {"content": "4", "reasoning_content": "hm, 2"}


def test_defaults_of_the_model_then_of_openai() -> None:
    text = msgspec.structs.replace(TEXT, generation={"temperature": 0.6, "top_k": 20, "repetition_penalty": 1.05})
    with running(says("x"), text) as server:
        ask = client(server).chat.completions.create
        ask(model="tiny", messages=USER)
        ask(model="tiny", messages=USER, temperature=0, extra_body={"top_k": 0, "repetition_penalty": 1, "min_p": 0.1})
        first, second = (params for _, params in server.backend.requests)
        assert (first.temperature, first.top_k, first.repetition_penalty, first.top_p) == (0.6, 20, 1.05, 1.0)
        assert (second.temperature, second.top_k, second.repetition_penalty, second.min_p) == (0.0, 0, 1.0, 0.1)
    with running(says("x")) as server:
        client(server).chat.completions.create(model="tiny", messages=USER)
        params = server.backend.requests[0][1]
        assert (params.temperature, params.top_p, params.repetition_penalty, params.max_tokens) == (1.0, 1.0, 1.0, None)


def test_errors_are_the_clients_own_exceptions(server: Running) -> None:
    ask = client(server).chat.completions.create
    with pytest.raises(openai.NotFoundError) as missing:
        ask(model="other", messages=USER)
    assert missing.value.param == "model" and missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        ask(model="tiny", messages=USER, temperature=9)
    assert bad.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as unknown:
        ask(model="tiny", messages=USER, extra_body={"frobnicate": 1})
    assert unknown.value.param == "frobnicate"
    with pytest.raises(openai.BadRequestError) as long:
        ask(model="tiny", messages=USER, max_tokens=5000)
    assert long.value.param == "max_tokens" and long.value.code == "context_length_exceeded"


def test_models(server: Running) -> None:
    assert [m.id for m in client(server).models.list()] == ["tiny"]
    assert client(server).models.retrieve("tiny").owned_by == "ferrum"
    with pytest.raises(openai.NotFoundError):
        client(server).models.retrieve("other")


def test_key() -> None:
    with running(says("x"), api_key="secret-key-1") as server:
        with pytest.raises(openai.AuthenticationError):
            client(server, "secret-key-2").models.list()
        assert [m.id for m in client(server, "secret-key-1").models.list()] == ["tiny"]
