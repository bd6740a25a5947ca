"""Streams on the wire: their form, signs of life, errors inside, clients that leave."""

from __future__ import annotations

import json
import random
import socket
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
from msgspec.structs import replace

from ferrum.errors import FerrumError
from ferrum.server import sse
from tests.server.fake import FakeBackend
from tests.server.harness import Running, chat_body, running, says, sse_events, tokenizer

CHAT = "/v1/chat/completions"
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


def text_of(events: list[Any]) -> str:
    return "".join(c["delta"].get("content") or "" for e in events if isinstance(e, dict) for c in e["choices"])


def send(server: Running, body: dict[str, Any], path: str = CHAT, key: str = "") -> socket.socket:
    raw = json.dumps(body).encode()
    headers = ["host: localhost", "content-type: application/json", f"content-length: {len(raw)}", f"x-api-key: {key}"]
    sock = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    sock.sendall("\r\n".join([f"POST {path} HTTP/1.1", *headers, "", ""]).encode() + raw)
    return sock


def eventually(condition: Callable[[], bool], seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def test_the_form_of_a_stream() -> None:
    with running(says("Hello there")) as server:
        status, raw, headers = server.chat(stream=True)
        assert status == 200 and headers["content-type"].startswith("text/event-stream")
        assert all(part.startswith("data: ") for part in raw.split("\n\n") if part)
        events = sse_events(raw)
        assert events[-1] == "[DONE]" and events.count("[DONE]") == 1
        assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert all("role" not in e["choices"][0]["delta"] for e in events[1:-1])
        assert all(e["choices"][0]["delta"]["content"] for e in events[1:-2])
        assert events[-2]["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
        assert all(e["choices"][0]["finish_reason"] is None for e in events[:-2])
        assert not any("usage" in e for e in events[:-1])
        assert all(e["object"] == "chat.completion.chunk" for e in events[:-1])


def test_streamed_and_whole_answers_are_the_same() -> None:
    rng = random.Random(5)
    special = tokenizer().special_ids

    def reply(prompt: Any, params: Any, index: int) -> list[int]:
        draw = random.Random(f"{params.seed}/{index}")
        return [t for t in (draw.randrange(768) for _ in range(30)) if t not in special]

    with running(FakeBackend(reply)) as server:
        for seed in range(40):
            stops = ["".join(rng.choices("abeot \n", k=rng.randint(1, 2))) for _ in range(rng.randint(0, 3))]
            body: dict[str, Any] = {"seed": seed, "stop": stops, "n": 2, "logprobs": True, "max_tokens": rng.randint(1, 40)}
            _, whole, _ = server.chat(**body)
            events = sse_events(server.chat(**body, stream=True, stream_options={"include_usage": True})[1])
            for index, choice in enumerate(whole["choices"]):
                mine = [c for e in events[:-1] for c in e["choices"] if c["index"] == index]
                assert "".join(c["delta"].get("content") or "" for c in mine) == choice["message"]["content"]
                assert mine[-1]["finish_reason"] == choice["finish_reason"]
                scores = [s for c in mine if c["logprobs"] for s in c["logprobs"]["content"]]
                assert scores == choice["logprobs"]["content"]
                spelled = bytes(b for s in scores for b in s["bytes"]).decode("utf-8", "replace")
                assert spelled.startswith(choice["message"]["content"].rstrip("\ufffd")), (spelled, choice)
            assert events[-2]["usage"] == whole["usage"] and events[-2]["choices"] == []


def test_a_comment_on_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "SILENCE_SECONDS", 0.05)
    monkeypatch.setattr("ferrum.server.exchange.SILENCE_SECONDS", 0.05)
    backend = says("abc")
    backend.prefill_seconds = 0.3
    with running(backend) as server:
        status, raw, _ = server.chat(stream=True)
        assert status == 200 and raw.count(": waiting\n\n") >= 1
        assert text_of(sse_events(raw)[:-1]) == "abc"
        assert server.chat()[0] == 200  # a whole answer may take longer than that, too


def test_held_back_tokens_do_not_count_as_silence_but_get_a_comment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "SILENCE_SECONDS", 0.05)
    backend = says("<tool_call>\n" + " " * 30 + "x")
    backend.token_seconds = 0.01
    with running(backend) as server:
        raw = server.chat(stream=True, tools=[TOOL])[1]
        assert raw.count(": waiting\n\n") >= 1 and text_of(sse_events(raw)[:-1]).endswith("x")


def test_a_refusal_has_a_status_of_its_own() -> None:
    backend = says("x")
    with running(backend) as server:
        backend.max_running = 0
        for stream in (False, True):
            status, answer, headers = server.chat(stream=stream)
            assert status == 429 and headers["retry-after"] and answer["error"]["type"] == "rate_limit_error"
        backend.max_running = 5
        for stream in (False, True):
            status, answer, _ = server.chat("hi " * 5000, stream=stream)
            assert status == 400 and answer["error"]["param"] == "messages"


def test_an_error_inside_a_stream_is_an_event_and_the_end() -> None:
    backend = says("abcdefgh" * 8)
    backend.token_seconds = 0.02
    with running(backend) as server, closing(send(server, chat_body(stream=True))) as sock:
        assert eventually(lambda: backend.tokens > 3)
        error = FerrumError("engine-died", "the engine process 4711 ended unexpectedly (signal 9)")
        server.run(lambda: [g.fail(error) for g in list(backend.live)])
        raw = b""
        while b"0\r\n\r\n" not in raw:
            raw += sock.recv(65536)
        text = raw.decode()
        assert "event: error\ndata: " in text and "[DONE]" not in text and "4711" not in text
        body = json.loads(text.partition("event: error\ndata: ")[2].partition("\n")[0])
        assert body["error"]["type"] == "service_unavailable_error"
        status, answer, headers = server.chat()  # the fake engine itself lives on
        assert status == 200, answer


def test_a_fault_of_the_server_is_a_500_without_internals(capfd: pytest.CaptureFixture[str]) -> None:
    with running(says("x")) as server:
        original = server.state.template
        server.state.template = "secret"  # type: ignore[assignment]
        status, answer, _ = server.chat("my secret prompt")
        server.state.template = original
        assert status == 500
        assert answer["error"] == {
            "message": "the server failed to answer this request", "type": "server_error", "param": None, "code": "internal_error"
        }  # fmt: skip
    errors = capfd.readouterr().err
    assert errors.startswith("error: internal AttributeError · ") and "secret" not in errors and errors.count("\n") == 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("size", [2, 300_000])
def test_a_client_that_leaves_frees_its_sequences(stream: bool, phase: str, size: int) -> None:
    backend = says("abcdefgh" * 400)
    backend.info = replace(backend.info, max_model_len=1 << 21)
    backend.token_seconds = 0.005
    backend.prefill_seconds = 30.0 if phase == "prefill" else 0.0
    with running(backend) as server:
        with closing(send(server, chat_body("x" * size, stream=stream, n=2))):
            assert eventually(lambda: len(backend.live) == 1 and (phase == "prefill" or backend.tokens > 2))
        assert eventually(lambda: not backend.live and server.state.active == 0)
        assert len(backend.aborts) == 1 and backend.aborts[0][1] is None


def test_many_clients_that_leave() -> None:
    backend = says("abcdefgh" * 400)
    backend.token_seconds = 0.002
    rng = random.Random(4)
    with running(backend) as server:
        for _ in range(60):
            sock = send(server, chat_body(stream=rng.random() < 0.5, n=rng.randint(1, 3)))
            time.sleep(rng.random() * 0.01)
            sock.close()
        assert eventually(lambda: not backend.live and server.state.active == 0)
        assert server.chat(max_tokens=2)[0] == 200


def test_a_client_that_leaves_while_its_text_is_tokenized() -> None:
    backend = says("x")
    backend.info = replace(backend.info, max_model_len=1 << 21)
    with running(backend) as server:
        with closing(send(server, chat_body("word " * 200_000))):
            assert eventually(lambda: server.state.active == 1)
        assert eventually(lambda: server.state.active == 0)
        assert not backend.requests and not backend.live


def test_a_stop_string_ends_the_sequence_in_the_engine() -> None:
    backend = says("abc def ghi " * 100)
    backend.token_seconds = 0.002
    with running(backend) as server:
        _, answer, _ = server.chat(stop="def", n=2)
        assert [c["message"]["content"] for c in answer["choices"]] == ["abc ", "abc "]
        assert eventually(lambda: not backend.live) and backend.tokens < 100
        assert {index for _, index in backend.aborts} == {0, 1}


def test_a_client_that_does_not_read_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "STALL_SECONDS", 0.2)
    ids = tokenizer().encode("abcdefgh " * 100, special=False) * 200
    backend = FakeBackend(lambda prompt, params, index: ids)
    backend.info = replace(backend.info, max_model_len=1 << 22)
    with running(backend) as server:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", server.port))
        raw = json.dumps(chat_body(stream=True)).encode()
        sock.sendall(
            b"POST %b HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
            % (CHAT.encode(), len(raw), raw)
        )
        with closing(sock):
            assert eventually(lambda: server.state.active == 1)
            assert eventually(lambda: server.state.active == 0 and not backend.live)


def test_a_stop_string_that_is_a_special_token_is_found_by_its_id() -> None:
    with running(says("Hello there")) as server:
        assert server.chat(stop=["<|im_start|>", "there"])[0] == 200
        params = server.backend.requests[-1][1]
        assert params.stop_token_ids == (tokenizer().token_id("<|im_start|>"),)
        assert server.post("/v1/completions", {"model": "tiny", "prompt": "x", "stop": "<|im_end|>"})[0] == 200
        assert server.backend.requests[-1][1].stop_token_ids == (tokenizer().token_id("<|im_end|>"),)
