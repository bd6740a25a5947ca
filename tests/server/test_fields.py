"""Every field of a request: taken, or refused by name; and thousands of hostile requests, none of which is a 500."""

from __future__ import annotations

import json
import os
import random
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from ferrum.server.protocol import ChatRequest, CompletionRequest, TokenizeRequest
from ferrum.server.wire import _PIECE, MAX_DIGITS, BadRequest, check_structure
from tests.server.harness import Running, chat_body, running, says

CHAT = "/v1/chat/completions"
TEXTS = "/v1/completions"
MANY = int(os.environ.get("HOSTILE_REQUESTS", "3000"))


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(says("ok")) as made:
        yield made


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    (CHAT, {"frobnicate": 1}, "frobnicate"),
    (CHAT, {"functions": [{"name": "f"}]}, "functions"),
    (CHAT, {"function_call": {"name": "f"}}, "function_call"),
    (CHAT, {"length_penalty": 2}, "length_penalty"),
    (CHAT, {"min_tokens": False}, "min_tokens"),
    (CHAT, {"stop_token_ids": [5]}, "stop_token_ids"),
    (CHAT, {"chat_template": "{{ 1 }}"}, "chat_template"),
    (CHAT, {"documents": [{"text": "x"}]}, "documents"),
    (CHAT, {"function_call": "a" * 2000}, "function_call"),
    (CHAT, {"stream": True, "stream_options": {"continuous_usage_stats": True}}, "stream_options.continuous_usage_stats"),
    (CHAT, {"messages": [{"role": "assistant", "content": "x", "prefix": True}]}, "messages[0].prefix"),
    (CHAT, {"max_completion_tokens": 0}, "max_completion_tokens"),
    (CHAT, {"max_tokens": -2}, "max_tokens"),
    (CHAT, {"modalities": ["audio"]}, "modalities[0]"),
    (CHAT, {"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema"),
    (CHAT, {"response_format": "text"}, "response_format"),
    (CHAT, {"temperature": -0.1}, "temperature"),
    (CHAT, {"temperature": 2.1}, "temperature"),
    (CHAT, {"temperature": "1"}, "temperature"),
    (CHAT, {"top_p": 1.1}, "top_p"),
    (CHAT, {"top_k": -2}, "top_k"),
    (CHAT, {"min_p": 2}, "min_p"),
    (CHAT, {"presence_penalty": 3}, "presence_penalty"),
    (CHAT, {"frequency_penalty": -3}, "frequency_penalty"),
    (CHAT, {"repetition_penalty": 0}, "repetition_penalty"),
    (CHAT, {"max_tokens": 0}, "max_tokens"),
    (CHAT, {"max_tokens": 1.5}, "max_tokens"),
    (CHAT, {"max_tokens": True}, "max_tokens"),
    (CHAT, {"max_tokens": 10**30}, "max_tokens"),
    (CHAT, {"max_completion_tokens": 5000}, "max_completion_tokens"),
    (CHAT, {"n": 0}, "n"),
    (CHAT, {"n": 65}, "n"),
    (CHAT, {"seed": 1 << 63}, "seed"),
    (CHAT, {"stop": ["a"] * 5}, "stop"),
    (CHAT, {"logit_bias": {"x": 1}}, "logit_bias"),
    (CHAT, {"logit_bias": {"-1": 1}}, "logit_bias"),
    (CHAT, {"logit_bias": {"5": 101}}, "logit_bias"),
    (CHAT, {"logit_bias": {"99999": 1}}, "logit_bias"),
    (CHAT, {"logit_bias": {str(i): 0 for i in range(2000)}}, "logit_bias"),
    (CHAT, {"top_logprobs": 2}, "top_logprobs"),
    (CHAT, {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    (CHAT, {"logprobs": 5}, "logprobs"),
    (CHAT, {"stream": True, "stream_options": {"other": 1}}, "stream_options.other"),
    (CHAT, {"metadata": {"a": 1}}, "metadata[...]"),
    (CHAT, {"metadata": {"ferrum_session_id": "x"}}, "metadata.ferrum_session_id"),
    (CHAT, {"tools": [{"type": "web_search"}]}, "tools"),
    (CHAT, {"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools"),
    (CHAT, {"tools": [{"type": "function", "function": {"name": "a"}}] * 2}, "tools"),
    (CHAT, {"tool_choice": "required"}, "tool_choice"),
    (CHAT, {"tool_choice": {"type": "function", "function": {"name": "nobody"}}}, "tool_choice"),
    (CHAT, {"reasoning_effort": "low"}, "reasoning_effort"),
    (CHAT, {"chat_template_kwargs": {"enable_thinking": True}}, "chat_template_kwargs.enable_thinking"),
    (CHAT, {"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages"),
    (CHAT, {"messages": []}, "messages"),
    (CHAT, {"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
    (CHAT, {"messages": [{"role": "user"}]}, "messages[0].content"),
    (CHAT, {"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]},
     "messages[0].content[0]"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "smell", "smell": "x"}]}]}, "messages[0].content[0].type"),
    (CHAT, {"messages": [{"role": "user", "content": "x", "extra": 1}]}, "messages[0].extra"),
    (CHAT, {"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
    (CHAT, {"model": 5}, "model"),
    (CHAT, {"prompt": "x"}, "prompt"),
    (TEXTS, {"echo": True}, "echo"),
    (TEXTS, {"suffix": "x"}, "suffix"),
    (TEXTS, {"best_of": 2}, "best_of"),
    (TEXTS, {"messages": []}, "messages"),
    (TEXTS, {"prompt": []}, "prompt"),
    (TEXTS, {"prompt": ""}, "prompt"),
    (TEXTS, {"prompt": [1, "a"]}, "prompt"),
    (TEXTS, {"prompt": [-1]}, "prompt[0]"),
    (TEXTS, {"prompt": [99999]}, "prompt"),
    (TEXTS, {"prompt": ["a"] * 65}, "prompt"),
    (TEXTS, {"prompt": ["a"] * 64, "n": 5}, "n"),
    (TEXTS, {"prompt": None}, "prompt"),
    (TEXTS, {"prompt": "hi " * 400_000}, "prompt"),
    (TEXTS, {"prompt": [5] * 5000}, "prompt"),
    (TEXTS, {"logprobs": True}, "logprobs"),
    ("/tokenize", {"messages": [{"role": "user", "content": "x"}]}, "prompt"),
    ("/tokenize", {"prompt": None}, "prompt"),
    ("/tokenize", {"tools": []}, "tools"),
    ("/detokenize", {"tokens": [99999]}, "tokens"),
    ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
    ("/detokenize", {"tokens": "x"}, "tokens"),
]  # fmt: skip


def body_of(path: str, fields: dict[str, Any]) -> dict[str, Any]:
    base = {
        CHAT: chat_body(),
        TEXTS: {"model": "tiny", "prompt": "x"},
        "/tokenize": {"prompt": "x"},
        "/detokenize": {"tokens": [5]},
        "/v1/messages": {"model": "tiny", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]},
        "/v1/responses": {"model": "tiny", "input": "hi"},
        "/api/chat": chat_body(),
        "/api/generate": {"model": "tiny", "prompt": "x"},
    }
    return {**base[path], **fields}


@pytest.mark.parametrize(("path", "fields", "param"), REFUSED, ids=lambda v: str(v)[:40])
def test_refused_by_name(server: Running, path: str, fields: dict[str, Any], param: str) -> None:
    status, answer, _ = server.post(path, body_of(path, fields))
    assert status == 400, answer
    error = answer["error"]
    assert error["param"] == param and error["type"] == "invalid_request_error" and error["code"], error
    assert param.partition("[")[0].rpartition(".")[2].partition(".")[0] in error["message"] or len(error["message"]) > 10
    assert set(error) == {"message", "type", "param", "code"}


TAKEN: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"user": "u", "metadata": {"a": "b"}, "store": False, "response_format": {"type": "text"}, "modalities": ["text"]}),
    (CHAT, {"functions": None, "logit_bias": {"5": 1.5}, "parallel_tool_calls": True, "stop": None, "seed": -5, "n": 2}),
    (CHAT, {"chat_template_kwargs": {"enable_thinking": False}, "ignore_eos": True, "max_tokens": 3, "tool_choice": "none"}),
    (CHAT, {"messages": [
        {"role": "developer", "content": "d"}, {"role": "system", "content": [{"type": "text", "text": "s"}]},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "me"},
        {"role": "assistant", "content": None, "refusal": None, "annotations": [], "reasoning_content": "r",
         "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}},
                        {"id": "d", "type": "function", "function": {"name": "f", "arguments": "nope"}}]},
        {"role": "tool", "content": "t", "tool_call_id": "c"}]}),
    (TEXTS, {"echo": False, "suffix": None, "best_of": None, "logprobs": 0, "presence_penalty": -2, "frequency_penalty": 2}),
    (TEXTS, {"suffix": "", "best_of": 2, "n": 2, "model": None, "stop": ["", ""], "max_tokens": -1}),
    ("/tokenize", {"add_special_tokens": False, "model": "tiny"}),
    ("/tokenize", {"add_special_tokens": None, "model": ""}),
    ("/detokenize", {"skip_special_tokens": None, "model": None}),
    ("/tokenize", {"prompt": None, "messages": [{"role": "user", "content": "x"}], "add_generation_prompt": False}),
    ("/detokenize", {"skip_special_tokens": True, "tokens": []}),
]  # fmt: skip


@pytest.mark.parametrize(("path", "fields"), TAKEN, ids=lambda v: str(v)[:40])
def test_taken(server: Running, path: str, fields: dict[str, Any]) -> None:
    status, answer, _ = server.post(path, body_of(path, fields))
    assert status == 200, answer


# What says "as usual", and hints that change no output: real clients send these unasked.
SILENT: list[dict[str, Any]] = [
    {"tool_choice": "auto"}, {"tool_choice": "none"}, {"tools": [], "tool_choice": "auto"},
    {"logprobs": False, "top_logprobs": 0},
    {"stop": ""}, {"stop": []}, {"best_of": 1}, {"max_tokens": -1}, {"max_completion_tokens": -1}, {"service_tier": "auto"},
    {"service_tier": "flex"}, {"stream_options": None},
    {"prompt_cache_key": "k"}, {"prompt_cache_retention": "24h"}, {"safety_identifier": "u"}, {"verbosity": "low"},
    {"store": True}, {"prediction": {"type": "content", "content": "a"}}, {"functions": []}, {"function_call": "auto"},
    {"model": None}, {"model": ""}, {"n": 1, "best_of": 1}, {"length_penalty": 1.0, "use_beam_search": False},
    {"min_tokens": 0, "stop_token_ids": [], "skip_special_tokens": True, "add_generation_prompt": True},
    {"cache_prompt": True, "id_slot": -1, "typical_p": 1.0, "repeat_penalty": 1.0},
    {"stream": True, "stream_options": {"include_usage": None, "include_obfuscation": False}},
    {"verbosity": {"any": ["thing", 1e3]}},
]  # fmt: skip


@pytest.mark.parametrize("fields", SILENT, ids=lambda v: str(v)[:60])
def test_what_changes_nothing_is_taken(server: Running, fields: dict[str, Any]) -> None:
    status, answer, _ = server.chat(**fields)
    assert status == 200, answer
    prompt, params = server.backend.requests[-1]
    server.chat()
    assert (prompt, params) == server.backend.requests[-1]


def test_every_optional_field_may_be_null(server: Running) -> None:
    for path, kind in ((CHAT, ChatRequest), (TEXTS, CompletionRequest), ("/tokenize", TokenizeRequest)):
        base = body_of(path, {})
        body = {**dict.fromkeys(kind.__struct_fields__), **base}
        assert server.post(path, body)[0] == 200, path


def test_hints_inside_of_messages_and_tools_do_not_reach_the_model(server: Running) -> None:
    def request(message: dict[str, Any], part: dict[str, Any], call: dict[str, Any], function: dict[str, Any]) -> dict[str, Any]:
        calls = [{"id": "call_000000001", "type": "function", "function": {"name": "f", "arguments": "{}"}, **call}]
        return chat_body(
            messages=[
                {"role": "user", "content": [{"type": "text", "text": "a", **part}], **part},
                {"role": "assistant", "content": "b", "tool_calls": calls, **message},
                {"role": "tool", "content": "c", "tool_call_id": "call_000000001", **part},
            ],
            tools=[{"type": "function", "function": {"name": "f", "parameters": {}, **function}, **part}],
        )

    plain = server.post(CHAT, request({}, {}, {}, {}))[0]
    hinted = server.post(
        CHAT,
        request(
            {"refusal": "no", "annotations": [{"type": "url"}], "audio": None, "reasoning_details": [1]},
            {"cache_control": {"type": "ephemeral"}},
            {"index": 0},
            {"strict": False},
        ),
    )[0]
    assert plain == hinted == 200
    assert server.backend.requests[-1] == server.backend.requests[-2]


def many(name: bytes, part: bytes) -> bytes:
    """A large body that is valid JSON of very many parts."""
    return b'{"model":"tiny","messages":[{"role":"user","content":"x"}],"%b":[%b]}' % (
        name,
        b",".join([part] * (1_500_000 // len(part))),
    )


RAW: list[bytes] = [
    b"", b"{", b"[]", b"null", b"5", b'"x"', b"\xff\xfe", b"\xef\xbb\xbf{}", b"{}{}", b'{"a":1,}', b"{'a':1}",
    b'{"model":"tiny","messages":[{"role":"user","content":"\\ud800"}]}',
    b'{"model":"tiny","messages":[{"role":"user","content":"\xed\xa0\x80"}]}',
    b'{"model":"tiny","messages":[{"role":"user","content":"x"}],"temperature":NaN}',
    b'{"model":"tiny","messages":[{"role":"user","content":"x"}],"temperature":Infinity}',
    b'{"model":"tiny","messages":[{"role":"user","content":"x"}],"temperature":1e999}',
    b'{"model":"tiny","messages":[{"role":"user","content":"x"}],"min_tokens":1e999}',
    b'{"model":"tiny","messages":[{"role":"user","content":"x"}],"min_tokens":"\xff"}',
    b'{"input":[{"type":"reason\xffng"}]}', b'{"input":[' + b"[" * 5000 + b"]" * 5000 + b"]}", b'{"input":[1e999]}',
    b'{"model":"tiny","messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'{"model":"tiny","messages":[{"role":"user","content":"x"}],"tools":[{"type":"function","function":{"name":"f","parameters":'
    + b'{"a":' * 500 + b"1" + b"}" * 500 + b"}}]}",
    b'{"model":"tiny","messages":[{"role":"user","content":"x"}],"tool_choice":' + b"[" * 5000 + b"]" * 5000 + b"}",
    many(b"tool_choice", b"[]"), many(b"tool_choice", b'{"a":1}'), many(b"stop", b'""'), many(b"messages", b"{}"),
    b'"' + b'\\"' * 300_000, b'"' * 300_001, b"\\" * 600_001, b'{"model":"' + b"\\" * 600_001,
]  # fmt: skip


@pytest.mark.parametrize("raw", RAW, ids=lambda r: repr(r[:30]))
def test_what_is_no_request(server: Running, raw: bytes) -> None:
    for path in (CHAT, TEXTS, "/tokenize", "/detokenize", *DIALECTS):
        status, answer, _ = server.post(path, raw)
        assert status == 400 and answer["error"], (path, answer)


def test_only_json_is_taken(server: Running) -> None:
    body = json.dumps(chat_body()).encode()
    for kind in ("application/json; charset=utf-8", "text/plain", "application/x-www-form-urlencoded", ""):
        assert server.post(CHAT, body, content_type=kind)[0] == 200  # what curl and forms send unasked
    for headers in (
        {"content_type": "multipart/form-data"},
        {"content_type": "application/xml"},
        {"content_encoding": "gzip"},
    ):
        status, answer, _ = server.post(CHAT, body, **headers)
        assert status == 415 and answer["error"]["type"] == "invalid_request_error"


def test_the_header_of_sessions_is_refused(server: Running) -> None:
    status, answer, _ = server.post(CHAT, chat_body(), x_ferrum_session="a")
    assert status == 400 and answer["error"]["param"] == "x-ferrum-session"


VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2**31, 2**63, 10**40, -(10**40), 0.0, 1.5, -1e308, 1e-320, "", "x", "\x00", "\u202e",
    "a" * 5000, [], [[]], [None], [1, "a"], {}, {"a": {}}, {"": ""}, {"type": "text"}, {"role": "user", "content": "x"},
    [{"role": "user", "content": "x"}], [{"type": "function", "function": {"name": "f", "parameters": {"a": [1, {}]}}}],
    "auto", "none", ["stop"], {"1": 1}, {"include_usage": True}, {"enable_thinking": True},
]  # fmt: skip
NAMES = [
    "model", "messages", "prompt", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "min_p", "n", "seed",
    "stop", "stream", "stream_options", "logprobs", "top_logprobs", "logit_bias", "tools", "tool_choice", "user", "metadata",
    "response_format", "ignore_eos", "presence_penalty", "repetition_penalty", "chat_template_kwargs", "reasoning_effort", "echo",
    "input", "instructions", "max_output_tokens", "previous_response_id", "reasoning", "text", "include", "store", "system",
    "stop_sequences", "thinking", "output_config", "options", "think", "format", "raw", "keep_alive", "truncation",
    "tokens", "add_special_tokens", "parallel_tool_calls", "x", "", "\u0000", "__class__",
]  # fmt: skip


def hostile(rng: random.Random, path: str) -> bytes:
    """A request that is nearly right, or bytes that are nearly a request."""
    body: dict[str, Any] = body_of(path, {}) if rng.random() < 0.9 else {}
    for _ in range(rng.choice([0, 1, 1, 2, 4])):
        body[rng.choice(NAMES)] = rng.choice(VALUES)
    if rng.random() < 0.3 and isinstance(body.get("messages"), list):
        message = {
            "role": rng.choice(["user", "assistant", "tool", "system", "developer", "robot"]),
            "content": rng.choice(VALUES),
        }
        message[rng.choice(["name", "tool_calls", "tool_call_id", "x", "reasoning_content"])] = rng.choice(VALUES)
        body["messages"] = [*body["messages"], message]
    if path in (CHAT, TEXTS):
        body.setdefault("max_tokens", 2)
    if path == "/v1/responses" and rng.random() < 0.5:
        item = {"type": rng.choice(["message", "function_call", "function_call_output", "reasoning", "item_reference", "x"])}
        fields = {"role": "user", "content": rng.choice(VALUES), "call_id": "c", "output": "o", "id": rng.choice(VALUES)}
        body["input"] = [item | {k: v for k, v in fields.items() if rng.random() < 0.5}, rng.choice(VALUES)]
    raw = bytearray(json.dumps(body, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass"))
    if rng.random() < 0.4:
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(raw) or 1)
            raw[at : at + rng.randint(0, 3)] = rng.choice(
                [b"", b"\xff", b'"', b"{", b"]", b"\\ud800", b"NaN", b"1e999", bytes([rng.randrange(256)])]
            )
    return bytes(raw)


def test_hostile_requests_and_no_500(server: Running) -> None:
    rng = random.Random(11)
    counts: dict[int, int] = {}
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as sock:
        stream = sock.makefile("rwb")
        for i in range(MANY):
            path = rng.choice([CHAT, CHAT, TEXTS, "/tokenize", "/detokenize", *DIALECTS])
            raw = hostile(rng, path)
            head = (
                f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(raw)}\r\n\r\n"
            )
            stream.write(head.encode() + raw)
            stream.flush()
            status = read_response(stream)
            counts[status] = counts.get(status, 0) + 1
            assert status in (200, 400, 404), (i, status, path, raw[:500])
    assert counts[200] > MANY / 30 and counts[400] > MANY / 3, counts
    assert server.request("GET", "/health")[0] == 200 and not server.backend.live


DIALECTS = ("/v1/messages", "/v1/responses", "/api/chat", "/api/generate")


def read_response(stream: Any) -> int:
    """The status of one answer on a kept connection; its body is read to the end."""
    status = int(stream.readline().split()[1])
    headers = {}
    while (line := stream.readline().strip()) != b"":
        name, _, value = line.partition(b":")
        headers[name.lower()] = value.strip()
    if headers.get(b"transfer-encoding") == b"chunked":
        while size := int(stream.readline(), 16):
            stream.read(size + 2)
        stream.readline()
    else:
        stream.read(int(headers.get(b"content-length", b"0")))
    return status


LINES: list[bytes] = [
    b"GET /health HTTP/9.9\r\n\r\n",
    b"\r\n\r\n",
    b"GET\r\n\r\n",
    b"\x00\x01\x02\r\n\r\n",
    b"GET /%ff%fe HTTP/1.1\r\nhost: localhost\r\n\r\n",
    b"GET /v1/models/%00%ff HTTP/1.1\r\nhost: localhost\r\n\r\n",
    b"GET /v1/models/../../etc/passwd HTTP/1.1\r\nhost: localhost\r\n\r\n",
    b"GET http://[::1/ HTTP/1.1\r\nhost: localhost\r\n\r\n",
    b"GET //[x HTTP/1.1\r\nhost: [\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: -5\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99999999999999999999\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
    b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nexpect: nothing\r\ncontent-length: 1\r\n\r\nx",
    b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: \xff\r\ncontent-length: 2\r\n\r\n{}",
    b"GET /health HTTP/1.1\r\n" + b"a: b\r\n" * 5000 + b"\r\n",
    b"OPTIONS /v1/models HTTP/1.1\r\nhost: localhost\r\n\r\n",
    b"HEAD /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n\r\n",
    b"BREW /health HTTP/1.1\r\nhost: localhost\r\n\r\n",
    b"GET /health HTTP/1.1\r\nhost: localhost\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
]


@pytest.mark.parametrize("raw", LINES, ids=lambda r: repr(r[:60]))
def test_broken_http(server: Running, raw: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as sock:
        sock.sendall(raw)
        sock.shutdown(socket.SHUT_WR)
        answer = b""
        while data := sock.recv(65536):
            answer += data
    assert b" 500 " not in answer.partition(b"\r\n")[0], answer
    assert server.request("GET", "/ready")[0] == 200
    output = capfd.readouterr()
    assert output.err == "" and output.out == ""


def test_the_loop_is_not_held_up_by_large_requests(server: Running) -> None:
    """No time is asserted: other requests must be answered while a large one is looked at."""
    assert server.chat('a, [b] {c} \\ " \n' * 20_000, max_tokens=1)[0] == 400  # too long for the model, but well-formed
    body = b'{"tokens":[' + b",".join([b"70"] * 200_000) + b"]}"
    status, answer, _ = server.post("/detokenize", body)
    assert status == 200 and len(answer["prompt"]) >= 200_000


def test_structure_counts_only_what_is_outside_strings() -> None:
    check_structure(b'{"a":"' + b"[{," * 500_000 + b'"}')
    check_structure(b'{"a":"' + b'\\"[,' * 500_000 + b'"}')
    for body in (b"[" * 40_000, b'{"a":["x"' + b',"x"' * 1_100_000, b'"a"' + b"{" * 40_000, b"," * 1_100_000):
        with pytest.raises(BadRequest):
            check_structure(body)


@pytest.mark.parametrize("before", [0, _PIECE - MAX_DIGITS, _PIECE - 1, _PIECE, 3 * _PIECE - 50])
def test_long_numbers_are_found_wherever_they_are(before: int) -> None:
    check_structure(b" " * before + b"9" * MAX_DIGITS)
    with pytest.raises(BadRequest, match="digits"):
        check_structure(b" " * before + b"9" * (MAX_DIGITS + 1))
