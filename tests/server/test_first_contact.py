"""What clients do on their first try: methods, credentials, content types and addresses, and the line that tells of each."""

from __future__ import annotations

import json
import socket
from contextlib import closing
from pathlib import Path

import pytest

from ferrum.engine.reports import EngineStats
from ferrum.server.app import ROUTES
from ferrum.server.log import Log
from ferrum.server.options import ServeOptions
from tests.server.harness import Running, chat_body, running, says, sse_events
from tests.server.test_streams import eventually, send

KEY = "correct-horse-battery"


def raw(server: Running, request: str) -> bytes:
    with closing(socket.create_connection(("127.0.0.1", server.port), timeout=10)) as sock:
        sock.sendall(request.encode())
        answer = b""
        while data := sock.recv(65536):
            answer += data
    return answer


def test_head_works_wherever_get_does(tmp_path: Path) -> None:
    with running(says("x"), batch_dir=tmp_path) as server:
        for method, path, _ in ROUTES:
            if method == "GET":
                address = path.replace("<name:path>", "tiny").replace("<name:str>", "resp_1")
                answer = raw(server, f"HEAD {address} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
                head, _, body = answer.partition(b"\r\n\r\n")
                assert (
                    head.startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 404 ")) and body == b"" and b"content-length: 0" not in head
                ), path
        assert server.request("HEAD", "/v1/chat/completions")[0] == 405


def test_whoever_looks_whether_anything_is_there_is_told() -> None:
    with running(says("x"), api_key=KEY) as server:
        for method, body in (("GET", "ferrum is running\n"), ("HEAD", "")):
            status, told, headers = server.request(method, "/")
            assert (status, told) == (200, body) and headers["content-type"].startswith("text/plain")
        assert server.post("/", {}, x_api_key=KEY)[0] == 405


def test_no_empty_header() -> None:
    with running(says("alt-svc: \r\nx")) as server:
        for path in ("/health", "/nowhere", "/v1/models"):
            answer = raw(server, f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 ") and b"alt-svc" not in answer
        status, answer, headers = server.chat()
        assert "alt-svc" not in headers and answer["choices"][0]["message"]["content"] == "alt-svc: \r\nx"
        status, answer, headers = server.chat(stream=True)
        assert "alt-svc" not in headers and status == 200


def test_a_base_url_without_v1() -> None:
    with running(says("x"), api_key=KEY) as server:
        assert server.request("GET", "/models", x_api_key=KEY)[1]["data"][0]["id"] == "tiny"
        assert server.post("/chat/completions", chat_body(), x_api_key=KEY)[1]["choices"][0]["message"]["content"] == "x"
        assert server.request("GET", "/models")[0] == server.post("/chat/completions", chat_body())[0] == 401


def test_a_key_in_either_header() -> None:
    with running(says("x"), api_key=KEY) as server:
        good = ({"x_api_key": KEY}, {"authorization": f"bearer {KEY}"}, {"x_api_key": KEY, "authorization": "Bearer other"})
        for headers in good:
            assert server.request("GET", "/v1/models", **headers)[0] == 200
        for headers in ({"x_api_key": KEY + "x"}, {"x_api_key": ""}, {"x_api_key": f"Bearer {KEY}"}, {"api_key": KEY}):
            assert server.request("GET", "/v1/models", **headers)[0] == 401
        twice = f"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nx-api-key: {KEY}\r\nx-api-key: {KEY}\r\nconnection: close\r\n\r\n"
        assert b" 401 " in raw(server, twice).partition(b"\r\n")[0]


def test_the_key_that_every_readme_uses() -> None:
    with running(says("x"), api_key="EMPTY") as server:
        assert server.request("GET", "/v1/models")[0] == 401
        assert server.request("GET", "/v1/models", authorization="Bearer EMPTY")[0] == 200
    ServeOptions(api_key="EMPTY", host="::1")


def test_a_body_without_a_content_type() -> None:
    body = json.dumps(chat_body())
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    with running(says("x")) as server:
        assert raw(server, head + body).startswith(b"HTTP/1.1 200 ")


def lines_of(text: str) -> list[dict[str, str]]:
    return [dict(part.split("=", 1) for part in line.split()[2:]) | {"event": line.split()[1]} for line in text.splitlines()]


def test_a_line_for_each_request(capfd: pytest.CaptureFixture[str]) -> None:
    secret = "sesame"
    with running(says("four words of text"), verbose=1, api_key=KEY) as server:
        key = {"x_api_key": KEY}
        answer = server.post("/v1/chat/completions", chat_body(secret), **key)
        streamed = server.post("/v1/chat/completions", chat_body(secret, stream=True, user=secret), **key)[1]
        server.post("/v1/chat/completions", chat_body(secret, temperature=9), **key)
        server.post("/v1/chat/completions", {secret: 1}, **key)
        server.post(f"/{secret}?{secret}", {}, **key)
        server.request("GET", "/v1/models/" + secret, authorization=secret)
        server.backend.token_seconds = 5.0
        sock = send(server, {**chat_body(secret, stream=True, ignore_eos=True)}, key=KEY)
        assert eventually(lambda: bool(server.backend.live))
        sock.close()
        assert eventually(lambda: not server.backend.live)
    told = capfd.readouterr().err
    assert secret not in told and KEY not in told and "127.0.0.1" not in told
    lines = lines_of(told)
    assert [(line["route"], line["status"], line.get("error", "")) for line in lines] == [
        ("/v1/chat/completions", "200", ""),
        ("/v1/chat/completions", "200", ""),
        ("/v1/chat/completions", "400", "invalid_value"),
        ("/v1/chat/completions", "400", "unknown_parameter"),
        ("-", "404", "unknown_route"),
        ("-", "401", "invalid_api_key"),
        ("/v1/chat/completions", "499", ""),
    ]
    whole, stream = lines[:2]
    assert answer[1]["id"] == f"chatcmpl-{whole['id']}" and answer[2]["x-request-id"] == whole["id"]
    assert sse_events(streamed)[0]["id"] == f"chatcmpl-{stream['id']}"
    assert int(whole["completion_tokens"]) == answer[1]["usage"]["completion_tokens"] == int(stream["completion_tokens"])
    assert int(whole["prompt_tokens"]) > 5 and float(whole["seconds"]) >= float(whole["ttft_s"]) > 0


def test_lines_as_json_and_silence_by_default(capfd: pytest.CaptureFixture[str]) -> None:
    with running(says("x"), log_format="json") as server:
        server.chat()
    line = json.loads(capfd.readouterr().err)
    assert line["event"] == "request" and line["status"] == 200 and line["completion_tokens"] == 2 and line["time"].endswith("Z")
    with running(says("x")) as server:
        server.chat()
    assert capfd.readouterr().err == ""


def test_throughput_is_told_while_there_is_any(capfd: pytest.CaptureFixture[str]) -> None:
    idle = EngineStats(**dict.fromkeys(EngineStats.__struct_fields__, 0) | {"pools": ()})
    values = dict.fromkeys(EngineStats.__struct_fields__, 0)
    busy = EngineStats(**{**values, "num_decode_tokens": 50, "num_prefill_tokens": 20, "blocks_total": 8, "blocks_used": 2})
    log = Log(requests=True)
    log.throughput(idle, idle, 10.0)
    log.throughput(busy, busy, 10.0)
    assert capfd.readouterr().err == ""
    log.throughput(idle, busy, 10.0)
    line = lines_of(capfd.readouterr().err)[0]
    assert (line["decode_tokens_per_s"], line["prefill_tokens_per_s"], line["kv_used_percent"]) == ("5.0", "2.0", "25.0")
