"""Ollama's API: chats and generations in JSON lines and whole, what clients ask about models, and what is refused by name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from ferrum.errors import FerrumError
from ferrum.server.choice import Delta
from ferrum.server.dialects.blocks import ContentBlocks
from ferrum.server.dialects.ollama import Message, messages_of
from ferrum.server.gather import Gathered
from ferrum.server.routes.unserved import WANTED
from tests.server.harness import TEXT, Running, echoes, running, says, tokenizer
from tests.server.test_streams import eventually, send

ANSWER = "Hëllo wörld, 2+2=4.\nBye!"
USER: Any = [{"role": "user", "content": "hi"}]
TOOL: Any = {
    "type": "function",
    "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}},
}
CALL = '\n<tool_call>\n{"name": "add", "arguments": %s}\n</tool_call>'
THINKING = msgspec.structs.replace(TEXT, reasoning_start="<think>", reasoning_end="</think>")


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(says(ANSWER)) as made:
        yield made


def ask(server: Running, path: str = "/api/chat", **fields: Any) -> Any:
    """The whole answer, or the objects of a stream when ``stream`` is not given."""
    base: dict[str, Any] = {"model": "tiny:latest"} | ({"messages": USER} if path == "/api/chat" else {"prompt": "hi"})
    status, answer, headers = server.post(path, base | fields)
    assert status == 200, answer
    if fields.get("stream", True):
        assert headers["content-type"].startswith("application/x-ndjson")
        return [json.loads(line) for line in answer.splitlines()]
    return answer


def prompt_of(server: Running) -> str:
    return tokenizer().decode(server.backend.requests[-1][0], skip_special=False)


def test_a_chat_streams_unless_told_not_to(server: Running) -> None:
    told = ask(server, options={"num_predict": 90, "temperature": 0.5, "seed": 3, "num_ctx": 4096, "stop": ["zzz"]})
    assert "".join(t["message"]["content"] for t in told) == ANSWER and len(told) > 5
    assert [t["done"] for t in told] == [False] * (len(told) - 1) + [True]
    params = server.backend.requests[-1][1]
    assert (params.max_tokens, params.temperature, params.seed, params.stop) == (90, 0.5, 3, ("zzz",))
    last = told[-1]
    assert last["done_reason"] == "stop" and last["eval_count"] == len(tokenizer().encode(ANSWER, special=False)) + 1
    assert (
        last["prompt_eval_count"] == len(server.backend.requests[-1][0]) and last["total_duration"] >= last["eval_duration"] >= 0
    )
    whole = ask(server, stream=False)
    assert whole["message"] == {"role": "assistant", "content": ANSWER} and whole["done"] is True and whole["model"] == "tiny"
    assert ask(server, options={"num_predict": 3}, stream=False)["done_reason"] == "length"


def test_a_generation_with_and_without_the_template(server: Running) -> None:
    told = ask(server, "/api/generate", system="Be kind.")
    assert "".join(t["response"] for t in told) == ANSWER and "Be kind." in prompt_of(server)
    assert ask(server, "/api/generate", stream=False)["response"] == ANSWER
    with running(echoes()) as echo:
        assert ask(echo, "/api/generate", prompt="a b c d", raw=True, stream=False)["response"] == "a b c d"
        prompt, params = echo.backend.requests[-1]
        assert prompt == tokenizer().encode("a b c d") and params.max_tokens is None


def test_without_a_prompt_the_model_is_loaded_already(server: Running) -> None:
    before = len(server.backend.requests)
    for path, field in (("/api/chat", "messages"), ("/api/generate", "prompt")):
        status, answer, _ = server.post(path, {"model": "tiny", "keep_alive": "5m", field: None})
        assert status == 200 and answer["done"] is True and answer["done_reason"] == "load"
    assert len(server.backend.requests) == before


def test_tools_there_and_back() -> None:
    with running(says("Let me see." + CALL % '{"a": 2}' + CALL % "{}")) as server:
        told = ask(server, tools=[TOOL])
        calls = [c["function"] for t in told for c in t["message"].get("tool_calls", ())]
        assert calls == [{"name": "add", "arguments": {"a": 2}}, {"name": "add", "arguments": {}}]
        whole = ask(server, tools=[TOOL], stream=False)["message"]
        assert [c["function"] for c in whole["tool_calls"]] == calls and whole["content"] == "Let me see."
        results = [{"role": "tool", "tool_name": "add", "content": text} for text in ("5", "6")]
        ask(server, messages=[*USER, whole, *results], tools=[TOOL])
        prompt = prompt_of(server)
        assert '{"name": "add", "arguments": {"a": 2}}' in prompt and prompt.index("\n5") < prompt.index("\n6")


@pytest.mark.parametrize(
    ("results", "answered"),
    [
        ([{"tool_call_id": "b"}, {"tool_call_id": "a"}, {"tool_call_id": "c"}], [1, 0, 2]),
        ([{"tool_call_id": "c", "tool_name": "add"}, {"tool_name": "sub"}, {}], [2, 1, 0]),
        ([{"tool_name": "sub"}, {"tool_name": "add"}, {"tool_name": "add"}], [1, 0, 2]),
        ([{"tool_call_id": "z", "tool_name": "sub"}, {"tool_call_id": "z", "tool_name": "z"}, {"tool_call_id": ""}], [1, 0, 2]),
        ([{}, {}, {}, {}], [0, 1, 2, 0]),
    ],
)
def test_results_of_tools_find_their_calls(results: list[dict[str, str]], answered: list[int]) -> None:
    calls = [{"id": i, "function": {"name": n, "arguments": {}}} for i, n in (("a", "add"), ("b", "sub"), ("c", "add"))]
    told = [{"role": "assistant", "tool_calls": calls}, *({"role": "tool", "content": "x", **r} for r in results)]
    made = messages_of(msgspec.json.decode(msgspec.json.encode(told), type=list[Message]))
    ids = [call["id"] for call in made[0]["tool_calls"]]
    assert len(set(ids)) == 3 and [ids.index(m["tool_call_id"]) for m in made[1:]] == answered


def test_a_call_without_arguments(server: Running) -> None:
    for arguments in ({}, {"arguments": None}, {"arguments": {}}):
        calls = [{"function": {"name": "add", **arguments}}]
        ask(server, messages=[*USER, {"role": "assistant", "tool_calls": calls}], tools=[TOOL])
        assert '{"name": "add", "arguments": {}}' in prompt_of(server)


@pytest.mark.parametrize(("served", "names"), [("foo:latest", ("foo:latest", "foo")), ("foo", ("foo:latest", "foo"))])
def test_a_name_with_and_without_the_tag_is_one(served: str, names: tuple[str, ...]) -> None:
    with running(says("x")) as server:
        server.state.model_name = served
        for name in names:
            assert ask(server, model=name, stream=False)["done"] is True
            assert server.post("/api/show", {"model": name})[0] == 200
        assert server.post("/api/show", {"model": "foo:other"})[0] == 404


@pytest.mark.parametrize("fields", [{"system": "Be kind."}, {"think": True}, {"think": False}, {"think": "low"}])
def test_what_only_a_template_can_say_is_refused_without_one(server: Running, fields: dict[str, Any]) -> None:
    status, answer, _ = server.post("/api/generate", {"prompt": "hi", "raw": True, **fields})
    assert status == 400 and answer["error"].startswith(next(iter(fields))), answer
    assert server.post("/api/generate", {"prompt": "hi", "raw": True, "stream": False, "system": "", "think": None})[0] == 200


@pytest.mark.parametrize(("path", "prompt"), [("/api/chat", {"messages": USER}), ("/api/generate", {"prompt": "hi"})])
def test_thinking_that_the_model_lacks_is_refused_in_the_dialects_words(server: Running, path: str, prompt: Any) -> None:
    status, answer, _ = server.post(path, {**prompt, "think": True})
    assert status == 400 and answer["error"] == "think: this model has no thinking to enable"


def test_thinking() -> None:
    with running(says("<think>\nhm, 2\n</think>\n\n4"), THINKING) as server:
        told = ask(server, think=True)
        assert "".join(t["message"].get("thinking", "") for t in told) == "hm, 2"
        assert not prompt_of(server).endswith("</think>")
        ask(server, think=False, stream=False)  # the template has no switch, so the prompt ends with an empty reasoning
        assert prompt_of(server).endswith("assistant\n<think></think>")
        assert ask(server, "/api/generate", stream=False)["thinking"] == "hm, 2"
        ask(server, messages=[*USER, {"role": "assistant", "content": "4", "thinking": "hm"}, *USER])


def test_what_clients_ask_about_models(server: Running) -> None:
    for path in ("/api/tags", "/api/ps"):
        models = server.request("GET", path)[1]["models"]
        assert [m["name"] for m in models] == ["tiny:latest"] and models[0]["details"]["format"] == "fpk"
    shown = server.post("/api/show", {"model": "tiny"})[1]
    assert shown["capabilities"] == ["completion", "tools"] and shown["model_info"]["unknown.context_length"] == 4096
    assert tuple(map(int, server.request("GET", "/api/version")[1]["version"].split("."))) >= (0, 6, 4)
    status, answer, _ = server.post("/api/show", {"name": "other"})
    assert status == 404 and "other" in answer["error"]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"frobnicate": 1}, "frobnicate"),
        ({"format": "yaml"}, "format"),
        ({"format": {"not": {}}}, "keyword not"),
        ({"options": {"temperature": 9}}, "temperature"),
        ({"options": {"num_predict": 9000}}, "num_predict"),
        ({"options": {"mirostat": 2}}, "mirostat"),
        ({"messages": [{"role": "user", "content": "x", "images": ["aGk="]}]}, "images"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "role"),
        ({"think": True}, "think"),
        ({"tools": [{"type": "web"}]}, "tools"),
    ],
)
def test_refused_by_name(server: Running, fields: dict[str, Any], named: str) -> None:
    status, answer, _ = server.post("/api/chat", {"model": "tiny", "messages": USER, **fields})
    assert status == 400 and set(answer) == {"error"} and named in answer["error"], answer


def test_an_error_inside_a_stream() -> None:
    backend = says("abcdefgh" * 40)
    backend.token_seconds = 0.01
    with running(backend) as server, send(server, {"messages": USER}, "/api/chat") as sock:
        assert eventually(lambda: backend.tokens > 3)
        server.run(lambda: [g.fail(FerrumError("engine-died", "gone")) for g in list(backend.live)])
        raw = b""
        while b"0\r\n\r\n" not in raw:
            raw += sock.recv(65536)
        assert b'{"error":"the engine is not available"}\n' in raw


@pytest.mark.parametrize("path", WANTED)
def test_what_this_kind_of_model_cannot_do_is_said(server: Running, path: str) -> None:
    status, answer, _ = server.post(path, {"model": "tiny", "input": "x"})
    assert status == 400 and "generates text from text" in str(answer["error"])


def test_reasoning_that_the_model_only_closes_is_put_right_in_a_whole_answer() -> None:
    blocks = ContentBlocks()
    late = Delta(0, unopened="hm, 2", reasoning=", 2", content="4")
    for delta in (Delta(0, content="hm"), late, Delta(0, finish_reason="stop")):
        blocks.add(delta)
    assert [(b.kind, b.index, b.text) for b in blocks.all] == [("reasoning", 0, "hm, 2"), ("text", 1, "4")]
    gathered = Gathered()
    for delta in (Delta(0, content="hm"), late):
        gathered.add(delta)
    assert (gathered.reasoning, gathered.content) == ("hm, 2", "4")
