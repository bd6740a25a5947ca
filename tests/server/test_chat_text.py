"""Chats between the wire and the engine: what the template is given, and how calls and reasoning leave."""

from __future__ import annotations

import json
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

from ferrum.server.errors import ApiError
from ferrum.server.prepare import template_options
from ferrum.text.chat_template import ChatTemplate
from ferrum.text.template_process import TemplateProcess
from tests.server import harness
from tests.server.harness import TEXT, running, says, sse_events, tokenizer
from tests.text.templates import STYLES

CHAT = "/v1/chat/completions"
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}}
THINKS = replace(TEXT, reasoning_start="<think>", reasoning_end="</think>")


def calls_of(events: list[Any]) -> list[list[dict[str, Any]]]:
    deltas = [c["delta"] for e in events if isinstance(e, dict) for c in e["choices"]]
    return [d["tool_calls"] for d in deltas if d.get("tool_calls")]


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("mistral-args", '[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]f[CALL_ID]abcdefghi[ARGS]{"a": 2}'),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"a": 1}}\n{"name": "f", "arguments": {"a": 2}}</tool_call>'),
        ("glm", "<tool_call>f<arg_key>a</arg_key><arg_value>1</arg_value></tool_call>\n<tool_call>f<arg_key>a</arg_key>"
         "<arg_value>2</arg_value></tool_call>"),
    ],
)  # fmt: skip
def test_streamed_calls_have_one_entry_an_index_and_chunk(form: str, text: str) -> None:
    """Also where much leaves at once: a stop string that nearly comes holds all of it back."""
    with running(says(text + "."), replace(TEXT, tool_format=form)) as server:
        for stop in (None, text + "!"):
            chunks = calls_of(sse_events(server.chat(tools=[TOOL], stream=True, stop=stop)[1]))
            arguments = {0: "", 1: ""}
            ids = []
            for entries in chunks:
                assert len({entry["index"] for entry in entries}) == len(entries)
                for entry in entries:
                    arguments[entry["index"]] += entry["function"]["arguments"]
                    ids += [entry["id"]] if "id" in entry else []
            assert [json.loads(text) for text in arguments.values()] == [{"a": 1}, {"a": 2}]
            assert len(set(ids)) == 2 and all(len(i) == 9 and i.isalnum() and i.isascii() for i in ids)
        message = server.chat(tools=[TOOL])[1]["choices"][0]["message"]
        assert [json.loads(c["function"]["arguments"]) for c in message["tool_calls"]] == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    ("text", "reasoning", "content"),
    [
        ("<think>\nhm\n</think>\n\nHi", "hm", "Hi"),
        ("hm, well\n</think>\n\nHi", "hm, well", "Hi"),
        ("Hi there", None, "Hi there"),
    ],
)
def test_reasoning_of_every_style(text: str, reasoning: str | None, content: str) -> None:
    with running(says(text), THINKS) as server:
        message = server.chat()[1]["choices"][0]["message"]
        assert (message.get("reasoning_content"), message["content"]) == (reasoning, content)


def test_a_call_after_reasoning_that_was_only_closed() -> None:
    text = 'I look.</think>\n<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    with running(says(text), THINKS) as server:
        message = server.chat(tools=[TOOL])[1]["choices"][0]["message"]
        assert message["reasoning_content"] == "I look." and message["content"] is None
        assert message["tool_calls"][0]["function"]["name"] == "f"


def hermes(number: int) -> str:
    return '<tool_call>\n{"name": "f", "arguments": {"a": ' + str(number) + "}}\n</tool_call>"


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("last", ["", hermes(2)])
def test_a_call_in_reasoning_that_was_only_closed_is_reasoning(parallel: bool, last: str) -> None:
    thought = f"hm {hermes(1)} no"
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "tools": [TOOL], "parallel_tool_calls": parallel}
    with running(says(f"{thought}\n</think>\n\nyes{last}"), THINKS) as server:
        choice = server.post(CHAT, body)[1]["choices"][0]
        told = sse_events(server.post(CHAT, body | {"stream": True})[1])
        tools = [{"name": "f", "input_schema": {"type": "object"}}]
        message = server.post("/v1/messages", {"max_tokens": 400, "messages": body["messages"], "tools": tools})[1]
        ollama = server.post("/api/chat", {"messages": body["messages"], "tools": [TOOL], "stream": False})[1]["message"]
    made, number = choice["message"], 1 if last else 0
    assert made["reasoning_content"] == thought and (made["content"] or "").strip() == "yes"
    assert [c["function"]["arguments"] for c in made.get("tool_calls", [])] == ['{"a": 2}'] * number
    assert choice["finish_reason"] == ("tool_calls" if last else "stop")
    assert [b["type"] for b in message["content"]] == ["thinking", "text", *["tool_use"] * number]
    assert message["content"][0]["thinking"] == thought and message["stop_reason"] == ("tool_use" if last else "end_turn")
    assert ollama["thinking"] == thought and len(ollama.get("tool_calls", [])) == number
    begun = [c for entries in calls_of(told) for c in entries if "id" in c]
    assert [c["index"] for c in begun] == list(range(1 + number)) and len({c["id"] for c in begun}) == 1 + number
    assert [c["finish_reason"] for e in told if isinstance(e, dict) for c in e["choices"]][-1] == "tool_calls"


def test_channels_are_understood_with_and_without_tools() -> None:
    text = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>Hi"
    harmony = replace(TEXT, tool_format="harmony", reasoning_start="<|channel|>analysis<|message|>", reasoning_end="<|end|>")
    with running(says(text), harmony) as server:
        for fields in ({}, {"tools": [TOOL]}):
            message = server.chat(**fields)[1]["choices"][0]["message"]
            assert (message["reasoning_content"], message["content"]) == ("hm", "Hi")


def options(style: str, effort: str | None, thinking: bool | None = None) -> dict[str, Any]:
    state: Any = SimpleNamespace(template=ChatTemplate(style))
    return template_options(state, thinking, effort)


def test_effort_becomes_what_the_template_knows() -> None:
    qwen = STYLES["qwen3"]
    assert options(qwen, "none") == {"enable_thinking": False}
    assert options(qwen, "minimal") == options(qwen, "high") == {"enable_thinking": True}
    assert options(qwen, None) == {} and options(qwen, "high", False) == {"enable_thinking": False}
    assert options("{{ reasoning_effort }}", "high") == {"reasoning_effort": "high"}
    both = "{{ reasoning_effort }}{{ enable_thinking }}"
    assert options(both, "none") == {"reasoning_effort": "none", "enable_thinking": False}
    assert options("{{ messages }}", "none") == {}
    with pytest.raises(ApiError):
        options("{{ messages }}", "low")


def test_nulls_and_arguments_reach_the_template_as_it_wants_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "template", lambda: ChatTemplate(STYLES["null and text"]))
    call = {"id": "x", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    turns = [{"role": "user", "content": "q"}, {"role": "tool", "tool_call_id": "x", "content": "r"}]
    with running(says("ok")) as server:
        for content in ({"content": None}, {}):
            turn = {"role": "assistant", "tool_calls": [call], **content}
            body = {"model": "tiny", "messages": [turns[0], turn, turns[1]]}
            assert server.post(CHAT, body)[0] == 200
            prompt = tokenizer().decode(server.backend.requests[-1][0], skip_special=False)
            assert '<C>function|f|{"a": 1}</C>' in prompt and "<T>r" in prompt


def test_a_template_that_takes_for_ever_stops_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    source = "{% if messages[0].content == 'boom' %}" + loop + "{% endif %}{{ messages[0].content }}"
    with TemplateProcess({"default": source}) as process:
        monkeypatch.setattr(harness, "template", lambda: process)
        with running(says("ok")) as server:
            answers: list[tuple[int, Any, Any]] = []
            thread = threading.Thread(target=lambda: answers.append(server.chat("boom")))
            thread.start()
            seconds = []
            while thread.is_alive():
                started = time.monotonic()
                assert server.request("GET", "/health")[0] == 200
                seconds.append(time.monotonic() - started)
            thread.join()
            assert len(seconds) > 10  # of a second in which the template ran
            assert answers[0][0] == 400 and "too much time or memory" in answers[0][1]["error"]["message"]
            assert server.chat("fine")[0] == 200


