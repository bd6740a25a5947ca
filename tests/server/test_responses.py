"""OpenAI's Responses API: the `openai` package as it is, answers that are kept, and what is refused by name."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import msgspec
import openai
import pytest

from ferrum.errors import FerrumError
from ferrum.server.dialects.kept import Kept, KeptAnswers
from tests.server.fake import FakeBackend
from tests.server.harness import TEXT, Running, running, says, sse_events, tokenizer
from tests.server.test_streams import eventually

ANSWER = "Hëllo wörld, 2+2=4.\nBye!"
PATH = "/v1/responses"
TOOL: Any = {
    "type": "function",
    "name": "add",
    "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
    "strict": True,
}
CALL = '\n<tool_call>\n{"name": "add", "arguments": %s}\n</tool_call>'
CALLS = "Let me see." + CALL % '{"a": 2}' + CALL % "{}"
THINKING = msgspec.structs.replace(TEXT, reasoning_start="<think>", reasoning_end="</think>")


def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0, timeout=20)


def prompt_of(server: Running) -> str:
    return tokenizer().decode(server.backend.requests[-1][0], skip_special=False)


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(says(ANSWER)) as made:
        yield made


def test_a_response(server: Running) -> None:
    done = client(server).responses.create(
        model="tiny", input="hi", instructions="Be kind.", temperature=0.5, max_output_tokens=90, metadata={"a": "b"}
    )
    assert done.output_text == ANSWER and done.status == "completed" and done.error is None and done.incomplete_details is None
    assert done.id.startswith("resp_") and done.object == "response" and done.instructions == "Be kind."
    prompt, params = server.backend.requests[-1]
    assert done.usage is not None and done.usage.input_tokens == len(prompt)
    assert done.usage.total_tokens == len(prompt) + done.usage.output_tokens
    assert (params.temperature, params.max_tokens) == (0.5, 90) and done.metadata == {"a": "b"}
    assert "Be kind." in prompt_of(server)


def test_a_stream_is_the_same_response(server: Running) -> None:
    with client(server).responses.stream(model="tiny", input="hi") as stream:
        events = list(stream)
        final = stream.get_final_response()
    texts = [e.delta for e in events if e.type == "response.output_text.delta"]
    assert "".join(texts) == ANSWER == final.output_text and len(texts) > 5
    raw = server.post(PATH, {"input": "hi", "stream": True})[1]
    told = sse_events(raw)
    kinds = [e["type"] for e in told]
    assert kinds[:4] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"
    ]  # fmt: skip
    assert kinds[-4:] == [
        "response.output_text.done", "response.content_part.done", "response.output_item.done", "response.completed"
    ]  # fmt: skip
    assert [e["sequence_number"] for e in told] == list(range(len(told))) and "[DONE]" not in raw
    whole = server.post(PATH, {"input": "hi"})[1]
    ignored = ("id", "created_at", "output")
    last = told[-1]["response"]
    assert {k: v for k, v in last.items() if k not in ignored} == {k: v for k, v in whole.items() if k not in ignored}
    assert last["output"][0]["content"] == whole["output"][0]["content"]
    assert told[-2]["item"] == last["output"][0]


def test_the_asynchronous_client(server: Running) -> None:
    async def work() -> list[str]:
        made = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0, timeout=20)
        async with made:
            done = await made.responses.create(model="tiny", input="hi")
            stream: Any = await made.responses.create(model="tiny", input="hi", stream=True)
            texts = [e.delta async for e in stream if e.type == "response.output_text.delta"]
        return [done.output_text, "".join(texts)]

    assert asyncio.run(work()) == [ANSWER, ANSWER]


def test_an_answer_that_was_cut(server: Running) -> None:
    done = client(server).responses.create(model="tiny", input="hi", max_output_tokens=3)
    assert done.status == "incomplete" and done.incomplete_details is not None
    assert done.incomplete_details.reason == "max_output_tokens" and done.output[-1].status == "incomplete"  # type: ignore[union-attr]
    for length, status in ((3, "incomplete"), (90, "completed")):
        told = sse_events(server.post(PATH, {"input": "hi", "stream": True, "max_output_tokens": length})[1])
        items = [e["item"] for e in told if e["type"] == "response.output_item.done"]
        assert told[-1]["type"] == f"response.{status}"
        assert items == told[-1]["response"]["output"] and items[-1]["status"] == status


def test_tools_there_and_back() -> None:
    with running(says(CALLS)) as server:
        ask: Any = client(server).responses.create
        done = ask(model="tiny", input="hi", tools=[TOOL], tool_choice="auto")
        assert [i.type for i in done.output] == ["message", "function_call", "function_call"]
        assert [json.loads(i.arguments) for i in done.output[1:]] == [{"a": 2}, {}]
        with client(server).responses.stream(model="tiny", input="hi", tools=[TOOL]) as stream:
            pieces = "".join(e.delta for e in stream if e.type == "response.function_call_arguments.delta")
            final = stream.get_final_response()
        assert json.loads(pieces[: pieces.index("}") + 1]) == {"a": 2} and len(final.output) == 3
        results = [{"type": "function_call_output", "call_id": i.call_id, "output": "5"} for i in done.output[1:]]
        ask(model="tiny", input=[{"role": "user", "content": "hi"}, *done.output, *results], tools=[TOOL], store=False)
        by_hand = server.backend.requests[-1][0]
        assert '{"name": "add", "arguments": {"a": 2}}' in prompt_of(server) and "<tool_response>\n5" in prompt_of(server)
        ask(model="tiny", previous_response_id=done.id, input=results, tools=[TOOL])
        assert server.backend.requests[-1][0] == by_hand
        references = [{"type": "item_reference", "id": i.id} for i in done.output]
        ask(model="tiny", input=[{"role": "user", "content": "hi"}, *references, *results], tools=[TOOL])
        assert server.backend.requests[-1][0] == by_hand


def test_thinking_is_switched_as_in_chats() -> None:
    with running(says("4"), THINKING) as server:
        client(server).responses.create(
            model="tiny", input="hi", extra_body={"chat_template_kwargs": {"enable_thinking": False}}
        )
        assert prompt_of(server).endswith("assistant\n<think></think>")
        status, answer, _ = server.post(PATH, {"input": "hi", "chat_template_kwargs": {"chat_template": "x"}})
        assert status == 400 and answer["error"]["param"] == "chat_template_kwargs.chat_template"


def test_reasoning_there_and_back() -> None:
    with running(says("<think>\nhm, 2\n</think>\n\n4"), THINKING) as server:
        done: Any = client(server).responses.create(model="tiny", input="hi", reasoning={"summary": "auto"})
        assert [i.type for i in done.output] == ["reasoning", "message"] and done.output[0].content[0].text == "hm, 2"
        assert done.output_text == "4"
        stream: Any = client(server).responses.create(model="tiny", input="hi", stream=True)
        assert "".join(e.delta for e in stream if e.type == "response.reasoning_text.delta") == "hm, 2"
        status, answer, _ = server.post(
            PATH, {"input": [{"role": "user", "content": "a"}, *done.to_dict()["output"], {"role": "user", "content": "b"}]}
        )
        assert status == 200, answer


def test_conversations_go_on_from_answers_that_were_kept(server: Running) -> None:
    ask = client(server).responses.create
    first = ask(model="tiny", input="My name is Ada.", instructions="Be kind.")
    second = ask(model="tiny", input="What is my name?", previous_response_id=first.id)
    prompt = prompt_of(server)
    assert "My name is Ada." in prompt and "2+2=4." in prompt and "Be kind." not in prompt
    assert second.previous_response_id == first.id
    assert client(server).responses.retrieve(first.id).output_text == ANSWER
    third = ask(model="tiny", input="x", store=False)
    client(server).responses.delete(first.id)
    for name in (first.id, third.id, "resp_unknown"):
        with pytest.raises(openai.NotFoundError):
            client(server).responses.retrieve(name)
        with pytest.raises(openai.BadRequestError) as caught:
            ask(model="tiny", input="x", previous_response_id=name)
        assert caught.value.param == "previous_response_id" and caught.value.code == "previous_response_not_found"
    ask(model="tiny", input="And now?", previous_response_id=second.id)  # an answer holds all that came before it
    assert "My name is Ada." in prompt_of(server)


def test_what_is_kept_is_bounded() -> None:
    kept = KeptAnswers(max_answers=3, max_bytes=100)
    for i in range(5):
        kept.put(f"r{i}", Kept([], {f"m{i}": {"id": i}}, b"", 10))
    assert len(kept) == 3 and kept.get("r1") is None and kept.item("m4") == {"id": 4} and kept.item("m1") is None
    assert kept.get("r2") is not None  # used, so that r3 is the oldest now
    kept.put("r5", Kept([], {}, b"", 75))
    assert kept.get("r3") is None and kept.get("r2") is not None
    kept.put("large", Kept([], {}, b"", 101))
    assert len(kept) == 0 and not kept.drop("large")


@pytest.mark.parametrize(
    "fields",
    [
        {"store": True, "truncation": "disabled", "background": False, "include": [], "top_logprobs": 0, "service_tier": "auto"},
        {"include": ["reasoning.encrypted_content"], "prompt_cache_key": "k", "text": {"verbosity": "low"}, "max_tool_calls": 3},
        {"text": {"format": {"type": "text"}}, "tools": [], "tool_choice": "auto", "parallel_tool_calls": True, "user": "u"},
        {
            "instructions": None,
            "reasoning": {"effort": None},
            "previous_response_id": None,
            "stream_options": None,
            "model": None,
        },
        {"input": [{"role": "developer", "content": [{"type": "input_text", "text": "x"}]}, {"role": "user", "content": "y"}]},
    ],
    ids=str,
)
def test_what_changes_nothing_is_taken(server: Running, fields: dict[str, Any]) -> None:
    status, answer, _ = server.post(PATH, {"input": "hi", **fields})
    assert status == 200, answer
    assert server.post("/responses", {"input": "hi", **fields})[0] == 200


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"frobnicate": 1}, "frobnicate"),
        ({"input": []}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "http://x"}]}]}, "input"),
        ({"input": [{"type": "web_search_call"}]}, "input"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input"),
        ({"input": "x " * 9000}, "input"),
        ({"temperature": 9}, "temperature"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": 5000}, "max_output_tokens"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "nobody"}}, "tool_choice"),
        ({"text": {"format": {"type": "json_schema", "name": "n", "schema": {"not": {}}}}}, "text.format"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"include": ["file_search_call.results"]}, "include"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"conversation": "c"}, "conversation"),
        ({"reasoning": {"effort": "low"}}, "reasoning"),
    ],
)
def test_refused_by_name(server: Running, fields: dict[str, Any], param: str) -> None:
    status, answer, _ = server.post(PATH, {"input": "hi", **fields})
    assert status == 400 and (answer["error"]["param"] or "").partition("[")[0] == param, answer


def test_an_error_inside_a_stream() -> None:
    backend: FakeBackend = says("abcdefgh" * 40)
    backend.token_seconds = 0.01
    with running(backend) as server:
        stream: Any = client(server).responses.create(model="tiny", input="hi", stream=True)
        events: list[Any] = [next(stream) for _ in range(6)]
        assert eventually(lambda: backend.tokens > 3)
        server.run(lambda: [g.fail(FerrumError("engine-died", "gone")) for g in list(backend.live)])
        try:
            events += list(stream)
        except openai.APIError as error:
            assert "not available" in str(error)
        else:
            assert events[-1].type == "response.failed" and events[-1].response.status == "failed"


def test_texts_have_their_log_probabilities_where_they_are_asked_for(server: Running) -> None:
    asked = {"input": "x", "include": ["message.output_text.logprobs"], "top_logprobs": 3}
    answer = server.post("/v1/responses", asked)[1]
    part = answer["output"][0]["content"][0]
    assert answer["top_logprobs"] == 3 and len(part["logprobs"]) == answer["usage"]["output_tokens"] - 1  # not of the end
    assert bytes(b for p in part["logprobs"] for b in p["bytes"]).decode() == part["text"]
    assert all(len(p["top_logprobs"]) == 3 and p["logprob"] <= 0 and p["bytes"] for p in part["logprobs"])
    events = sse_events(server.post("/v1/responses", {**asked, "stream": True})[1])
    pieces = [e for e in events if e["type"] == "response.output_text.delta"]
    assert [p["token"] for e in pieces for p in e["logprobs"]] == [p["token"] for p in part["logprobs"]]
    done = next(e for e in events if e["type"] == "response.output_text.done")
    assert done["logprobs"] == part["logprobs"]
    silent = server.post("/v1/responses", {"input": "x"})[1]
    assert silent["output"][0]["content"][0]["logprobs"] == [] and silent["top_logprobs"] == 0


def test_nothing_runs_in_the_background_to_be_cancelled(server: Running) -> None:
    made = server.post("/v1/responses", {"input": "x"})[1]["id"]
    status, answer, _ = server.post(f"/v1/responses/{made}/cancel", {})
    assert status == 400 and answer["error"]["message"] == "Cannot cancel a synchronous response."
    assert server.post("/v1/responses/resp_none/cancel", {})[0] == 404
