"""What one client may cost: sizes of answers and of requests, connections, and texts that cannot fit."""

from __future__ import annotations

import json
import math
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferrum.server import budget, connections, exchange, wire
from ferrum.server.budget import cap_tokens
from ferrum.server.choice import CallPiece, Delta, ScoredToken
from ferrum.server.errors import ApiError
from ferrum.server.gather import Gathered
from ferrum.server.routes.chat import ChatWriter
from ferrum.server.wire import BadRequest, check_structure, explain
from tests.server.harness import Running, chat_body, running, says
from tests.server.test_streams import eventually

TEXTS = "/v1/completions"


def test_an_answer_that_would_be_too_large_is_refused_before_it_begins() -> None:
    with running(says("x")) as server:
        huge = {"prompt": ["a"] * 4, "n": 64, "max_tokens": 900, "logprobs": 20, "ignore_eos": True}
        status, answer, _ = server.post(TEXTS, huge)
        assert status == 400 and answer["error"]["param"] == "max_tokens" and not server.backend.requests
        assert server.post(TEXTS, {**huge, "max_tokens": 2})[0] == 200
        answer = server.chat(n=64, logprobs=True, top_logprobs=20, max_completion_tokens=400)[1]
        assert answer["error"]["param"] == "max_completion_tokens"
        server.chat(n=64, logprobs=True, top_logprobs=20)
        assert server.backend.requests[-1][1].max_tokens == budget.MAX_SCORES // (64 * 21)
        server.chat(n=64)
        assert server.backend.requests[-1][1].max_tokens is None


@given(
    st.integers(1, 4096),
    st.one_of(st.none(), st.integers(0, 20)),
    st.one_of(st.none(), st.integers(1, 1 << 20)),
    st.integers(1, 1 << 20),
)
def test_no_request_asks_for_more_than_an_answer_may_hold(
    sequences: int, logprobs: int | None, asked: int | None, room: int
) -> None:
    try:
        tokens = cap_tokens(asked, room, sequences=sequences, logprobs=logprobs)
    except ApiError:
        assert asked is not None and asked * sequences > budget.MAX_SCORES // 21
        return
    made = sequences * min(tokens or room, room) * (1 if logprobs is None else logprobs + 1)
    assert made <= (budget.MAX_TOKENS if logprobs is None else budget.MAX_SCORES) or tokens == 1


scored = st.builds(
    ScoredToken,
    st.integers(0, 1 << 20),
    st.floats(-100, 0),
    st.lists(st.tuples(st.integers(0, 1 << 20), st.floats(-math.inf, 0)), max_size=20).map(tuple),
    st.integers(0, 1 << 40),
)


@given(st.lists(st.tuples(st.text(max_size=5), st.text(max_size=5), st.lists(scored, max_size=3)), max_size=20))
def test_what_is_gathered_comes_back(pieces: list[tuple[str, str, list[ScoredToken]]]) -> None:
    gathered = Gathered()
    for content, reasoning, scores in pieces:
        gathered.add(Delta(0, content=content, reasoning=reasoning, scores=scores))
    gathered.add(Delta(0, calls=[CallPiece(0, "call_1", "f"), CallPiece(0, arguments="{"), CallPiece(0, arguments="}")]))
    gathered.add(Delta(0, finish_reason="stop"))
    assert gathered.content == "".join(c for c, _, _ in pieces) and gathered.reasoning == "".join(r for _, r, _ in pieces)
    assert list(gathered.scores) == [s for _, _, scores in pieces for s in scores]
    assert [(c.id, c.name, c.arguments.getvalue()) for c in gathered.calls] == [("call_1", "f", "{}")]
    assert gathered.finish_reason == "stop"


def test_a_large_answer_is_encoded_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[str] = []
    whole = ChatWriter.whole

    def noted(self: ChatWriter, counts: Any) -> Any:
        threads.append(threading.current_thread().name)
        return whole(self, counts)

    monkeypatch.setattr(ChatWriter, "whole", noted)
    with running(says("some words " * 30)) as server:
        answer = server.chat(logprobs=True, top_logprobs=20)[1]
        assert len(answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]) == 20
        server.chat(max_tokens=2)
    assert threads[0].startswith("text") and not threads[1].startswith("text")
    assert exchange.INLINE_NUMBERS < 30 * 21


@pytest.mark.parametrize(
    "body",
    [
        b'{"logit_bias":{' + b",".join(b'"%d":1' % i for i in range(40_000)) + b"}}",
        b'{"seed":' + b"1" * 101 + b" " * 40_000 + b"}",
        b'{"tools":[' + b",".join([b"9" * 1000] * 8000) + b"]}",
        b'"' * (1 << 20),
        b"[" + b",".join([b'"\\\\"'] * (1 << 17)) + b"]",
        b'{"a":0.' + b"1" * 40_000 + b"}",
    ],
    ids=lambda b: repr(b[:20]),
)
def test_what_would_take_long_to_decode_is_refused_first(body: bytes) -> None:
    with pytest.raises(BadRequest) as caught:
        check_structure(body)
    assert caught.value.code == "request_too_large"


@given(
    st.lists(st.sampled_from(['"', "\\", '\\"', "\\\\", "[", ",", "1" * 101, "é", "{", ":"]), max_size=30).map("".join),
    st.integers(2, 5),
)
def test_strings_are_skipped_whatever_they_hold(text: str, piece: int) -> None:

    raw = json.dumps({"a": text, "b": [1]}, ensure_ascii=False).encode()
    before = wire._PIECE
    wire._PIECE = piece
    try:
        assert wire._string_end(raw, raw.index(b":") + 3) == raw.index(b', "b"')
        check_structure(raw)
    finally:
        wire._PIECE = before


def test_names_of_megabytes_are_cut_before_anything_looks_at_them() -> None:
    for text in (
        "Object contains unknown field `" + " - at `x" * 1_000_000 + "`",
        "Invalid value '" + "a" * 8_000_000 + "' - at `$.messages[0].role`",
    ):
        error = explain(text)
        assert len(error.message) < 2000 and len(error.param or "") < 2000
    with running(says("x")) as server:
        status, answer, _ = server.post(TEXTS, b'{"' + b"a" * 4_000_000 + b'":1}')
        assert status == 400 and answer["error"]["code"] == "unknown_parameter" and len(answer["error"]["message"]) < 500
        body = chat_body()
        body["messages"][0]["role"] = "r" * 4_000_000
        assert server.post("/v1/chat/completions", body)[1]["error"]["param"] == "messages[0].role"


def test_a_text_that_cannot_fit_is_not_tokenized(monkeypatch: pytest.MonkeyPatch) -> None:
    with running(says("x")) as server:
        limit = server.state.max_chars
        assert server.state.tokenizer.most_chars * 4096 == limit < 1 << 20
        assert max(map(len, server.state.tokenizer.vocab())) <= server.state.tokenizer.most_chars
        monkeypatch.setattr(server.state.tokenizer, "_inner", None)  # whoever tokenizes fails with a 500
        for path, body in (
            (TEXTS, {"prompt": "\N{GRINNING FACE}" * (limit + 1)}),
            ("/tokenize", {"prompt": "x" * (limit + 1)}),
            ("/v1/chat/completions", chat_body("x" * (limit + 1))),
        ):
            status, answer, _ = server.post(path, body)
            assert status == 400 and answer["error"]["code"] == "context_length_exceeded", path


def connect(server: Running, first: bytes = b"", address: str = "127.0.0.1") -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", server.port), timeout=20, source_address=(address, 0))
    sock.sendall(first)
    return sock


def trickle(sock: socket.socket, seconds: float, piece: bytes = b"x") -> bytes:
    """What the server says while a byte goes out every 20 ms; empty when it stays silent."""
    sock.settimeout(0.02)
    deadline = time.monotonic() + seconds
    answer = b""
    while time.monotonic() < deadline:
        try:
            sock.sendall(piece)
            data = sock.recv(4096)
        except TimeoutError:
            continue
        except OSError:
            break
        if not data:
            break
        answer += data
    return answer


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.4)
    monkeypatch.setattr(connections, "BODY_GRACE_SECONDS", 0.4)
    yield


HEAD = b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\n"


@pytest.mark.usefixtures("hasty")
def test_headers_have_a_deadline_that_no_byte_extends() -> None:
    with running(says("x")) as server:
        for first in (HEAD + b"x: ", b"G", b"\r"):
            with closing(connect(server, first)) as sock:
                assert b" 408 " in trickle(sock, 10).partition(b"\r\n")[0]
        with closing(connect(server)) as sock:  # says nothing at all
            assert sock.recv(4096).startswith(b"HTTP/1.1 408 ")


@pytest.mark.usefixtures("hasty")
def test_bodies_have_a_least_rate() -> None:
    with running(says("x")) as server:
        for head in (b"content-length: 100000\r\n\r\n", b"transfer-encoding: chunked\r\n\r\nffff\r\n"):
            with closing(connect(server, HEAD + head)) as sock:
                assert b" 408 " in trickle(sock, 20).partition(b"\r\n")[0]
        with closing(connect(server, HEAD + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n")) as sock:
            assert sock.recv(4096).startswith(b"HTTP/1.1 408 ")
        body = b'{"prompt": "x"}'
        with closing(connect(server, HEAD + b"content-length: 40015\r\n\r\n" + b" " * 20_000)) as sock:
            time.sleep(1.0)  # well over the grace, but 20,000 bytes came
            sock.sendall(b" " * 20_000 + body)
            assert sock.recv(4096).startswith(b"HTTP/1.1 200 ")


@pytest.mark.usefixtures("hasty")
def test_kept_connections_and_long_answers_outlive_the_deadline() -> None:
    backend = says("abc")
    backend.prefill_seconds = 1.5
    with running(backend) as server, closing(connect(server, b"GET /ready HTTP/1.1\r\nhost: localhost\r\n\r\n")) as sock:
        assert sock.recv(4096).startswith(b"HTTP/1.1 200 ")
        time.sleep(1.0)
        sock.sendall(b"GET /ready HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert sock.recv(4096).startswith(b"HTTP/1.1 200 ")
        assert server.chat()[0] == 200


def test_when_all_places_are_taken_the_oldest_idle_one_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "SETTLED_SECONDS", 0.0)
    backend = says("abc")
    with running(backend, max_connections=4) as server, ExitStack() as stack:
        backend.prefill_seconds = 30.0
        raw = b'{"prompt": "x"}'
        served = stack.enter_context(closing(connect(server, b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n")))
        served.sendall(b"content-length: %d\r\n\r\n%b" % (len(raw), raw))
        assert eventually(lambda: server.state.active == 1)
        idle = [stack.enter_context(closing(connect(server, HEAD))) for _ in range(3)]
        assert eventually(lambda: len(server.server._server.connections) == 4)
        assert server.request("GET", "/ready")[0] == 200
        assert idle[0].recv(100) == b""
        assert server.state.active == 1


def test_an_address_has_a_share_of_the_places() -> None:
    with running(says("x"), max_connections_per_address=3) as server, ExitStack() as stack:
        mine = [stack.enter_context(closing(connect(server))) for _ in range(3)]
        assert eventually(lambda: len(server.server._server.connections) == 3)
        with closing(connect(server)) as sock:
            assert sock.recv(4096).startswith(b"HTTP/1.1 503 ")
        with closing(connect(server, b"GET /ready HTTP/1.1\r\nhost: localhost\r\n\r\n", address="127.0.0.2")) as sock:
            assert sock.recv(4096).startswith(b"HTTP/1.1 200 ")
        mine[0].close()
        assert eventually(lambda: len(server.server._server.connections) <= 3)
        with closing(connect(server, b"GET /ready HTTP/1.1\r\nhost: localhost\r\n\r\n")) as sock:
            assert eventually(lambda: True) and sock.recv(4096)
