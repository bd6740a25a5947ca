"""Who may ask, how much, and what is answered to everybody else."""

from __future__ import annotations

import re
import socket
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from msgspec.structs import replace

from ferrum.engine.reports import PoolStats
from ferrum.errors import FerrumError
from ferrum.server.app import ROUTES
from ferrum.server.metrics import render
from ferrum.server.options import ServeOptions
from ferrum.server.routes import status
from tests.server.harness import chat_body, running, says
from tests.server.test_streams import eventually

KEY = "correct-horse-battery"


@pytest.mark.parametrize(("method", "path"), [route[:2] for route in ROUTES])
def test_every_route_but_three_wants_the_key(method: str, path: str) -> None:
    address = path.replace("<name:path>", "tiny").replace("<name:str>", "resp_1")
    with running(says("x"), api_key=KEY) as server:
        body = {} if method == "POST" else None
        wrong = ["", KEY, f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", f"Basic {KEY}", "Bearer", "Bearer \xff"]
        expected = 200 if address in ("/", "/health", "/ready") else 401
        for value in wrong:
            code, answer, headers = server.request(method, address, body, authorization=value)
            assert code == expected
            if code == 401:
                assert "a valid API key is required" in str(answer["error"]) and headers["www-authenticate"] == "Bearer"
        assert server.request(method, address, body)[0] == expected
        assert server.request(method, address, body, authorization=f"Bearer {KEY}")[0] in (200, 400, 404)
        assert server.request("GET", "/nowhere")[0] == 401
        assert server.request("GET", "/health/../v1/models")[0] == 401


def test_unknown_routes_methods_and_models() -> None:
    with running(says("x")) as server:
        assert server.request("GET", "/nowhere")[0] == 404
        code, answer, headers = server.request("GET", "/v1/chat/completions")
        assert code == 405 and headers["allow"] == "POST" and answer["error"]["code"] == "method_not_allowed"
        assert server.post("/v1/models", {})[0] == 405
        assert server.request("GET", "/v1/models/other/name")[0] == 404
        for path, body in (
            ("/v1/chat/completions", chat_body()),
            ("/tokenize", {"prompt": "x"}),
            ("/detokenize", {"tokens": []}),
        ):
            code, answer, _ = server.post(path, {**body, "model": "gpt-4"})
            assert code == 404 and answer["error"]["param"] == "model"


def test_bodies_that_are_too_large() -> None:
    with running(says("x"), max_body_bytes=2000) as server:
        code, answer, _ = server.chat("x" * 3000)
        assert code == 413 and answer["error"]["code"] == "request_too_large"
        with closing(socket.create_connection(("127.0.0.1", server.port), timeout=10)) as sock:
            chunk = b"%x\r\n%b\r\n" % (1000, b"x" * 1000)
            sock.sendall(b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n" + chunk * 4)
            assert b" 413 " in sock.recv(4096).partition(b"\r\n")[0]
        assert server.chat("x" * 100)[0] == 200


def test_connections_beyond_the_cap_get_a_503() -> None:
    with running(says("x"), max_connections=3) as server, ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(closing(socket.create_connection(("127.0.0.1", server.port), timeout=10)))
        assert eventually(lambda: len(server.server._server.connections) == 3)
        with closing(socket.create_connection(("127.0.0.1", server.port), timeout=10)) as sock:
            answer = b""
            while data := sock.recv(4096):
                answer += data
        assert answer.startswith(b"HTTP/1.1 503 ") and b"too many connections" in answer and b"retry-after" in answer
        stack.close()
        assert eventually(lambda: not server.server._server.connections)
        assert server.request("GET", "/ready")[0] == 200


def test_addresses_that_others_reach_need_a_key() -> None:
    for host in ("0.0.0.0", "192.168.1.5", "::", "example.org", ""):
        with pytest.raises(FerrumError) as caught:
            ServeOptions(host=host)
        assert caught.value.code == "no-api-key"
        ServeOptions(host=host, api_key=KEY)
        ServeOptions(host=host, insecure=True)
    for host in ("127.0.0.1", "localhost", "::1", "127.1.2.3"):
        ServeOptions(host=host)


@pytest.mark.parametrize(
    "options",
    [
        {"port": 70_000},
        {"allowed_origins": ["example.org"]},
        {"log_format": "xml"},
        {"max_num_seqs": 0},
        {"drain_seconds": -1.0},
        {"api_key": "short", "host": "0.0.0.0"},
        {"api_key": "with\nnewline-in-it"},
        {"api_key": " "},
    ],
)
def test_options_that_cannot_be(options: dict[str, object]) -> None:
    with pytest.raises(FerrumError) as caught:
        ServeOptions(**options)  # type: ignore[arg-type]
    assert caught.value.code == "bad-option"


def test_the_key_is_not_in_what_is_printed_of_the_options() -> None:
    assert KEY not in repr(ServeOptions(api_key=KEY))


_PAGE_LINE = r'# TYPE \w+ (counter|gauge|histogram)|# HELP \w+ [A-Z].*\.|\w+(\{(\w+="[^"]+",?)+\})? [-+0-9.e]+'


def check_page(page: str) -> dict[str, float]:
    """The values of a Prometheus page, after a look at its form."""
    values = {}
    for line in page.splitlines():
        assert re.fullmatch(
            r'# TYPE \w+ (counter|gauge|histogram)|# HELP \w+ [A-Z].*\.|\w+(\{(\w+="[^"]+",?)+\})? [-+0-9.e]+', line
        ), line
        if not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            values[name] = float(value)
    return values


def test_metrics() -> None:
    with running(says("Hello there, all of you")) as server:
        assert server.chat(stream=True)[0] == server.chat()[0] == 200
        server.state.draining = True
        assert server.chat()[0] == 503
        code, page, headers = server.request("GET", "/metrics")
        assert code == 200 and headers["content-type"].startswith("text/plain; version=0.0.4")
        values = check_page(page)
        assert values["ferrum_engine_ttft_seconds_count"] == values["ferrum_engine_request_duration_seconds_count"] == 2
        assert values["ferrum_engine_tpot_seconds_count"] == 2 and values["ferrum_engine_itl_seconds_count"] > 10
        assert values['ferrum_engine_itl_seconds_bucket{le="+Inf"}'] == values["ferrum_engine_itl_seconds_count"]
        assert values["ferrum_engine_request_prompt_tokens_count"] == 2 == values["ferrum_engine_queue_seconds_count"]
        assert values["ferrum_admission_rejected_requests_total"] == 1
    contract = Path(__file__).with_name("metric_names.txt").read_text(encoding="utf-8").split()
    assert set(contract) <= {name.partition("{")[0].removesuffix("_count").removesuffix("_sum") for name in values}


def test_health_and_ready() -> None:
    backend = says("x")
    with running(backend) as server:
        code, answer, _ = server.request("GET", "/health")
        assert code == 200 and answer["status"] == "healthy" and answer["model"] == "tiny"
        assert answer["engine"] == {"active": 0, "queued": 0} and answer["admission"]["queue_depth"] == 0
        assert answer["cache"]["prefix_cache"]["enabled"] is True
        server.state.draining = True
        assert server.request("GET", "/health")[1]["status"] == "draining"
        code, _, headers = server.request("GET", "/ready")
        assert code == 503 and "retry-after" in headers
        server.state.draining = False
        backend.alive = False
        assert server.request("GET", "/health")[0] == server.request("GET", "/ready")[0] == 503
        code, answer, headers = server.chat()
        assert code == 503 and answer["error"]["code"] == "engine_unavailable" and "retry-after" in headers
        backend.alive = True


def test_a_long_step_is_no_illness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "STATS_SECONDS", 0.02)
    backend = says("x")
    with running(backend) as server:
        assert server.request("GET", "/health")[0] == 200
        backend.stats_seconds = 60.0
        assert server.request("GET", "/health")[1]["status"] == "healthy"
        assert server.request("GET", "/metrics")[0] == 200
        monkeypatch.setattr(status, "STUCK_SECONDS", 0.0)
        assert server.request("GET", "/health")[0] == 503


def test_the_openapi_document_names_every_route_and_field() -> None:
    with running(says("x")) as server:
        code, document, _ = server.request("GET", "/openapi.json")
    assert code == 200 and document["openapi"] == "3.1.0"
    assert {(m.upper(), p) for p, item in document["paths"].items() for m in item} == {
        (method, path.replace("<name:path>", "{id}").replace("<name:str>", "{id}")) for method, path, _ in ROUTES
    }
    chat = document["components"]["schemas"]["ChatRequest"]
    assert chat["additionalProperties"] is False and chat["required"] == ["messages"]
    assert chat["properties"]["temperature"]["anyOf"][0]["maximum"] == 2
    contents = document["paths"]["/v1/chat/completions"]["post"]["responses"]["200"]["content"]
    assert set(contents) == {"application/json", "text/event-stream"}
    assert list(document["paths"]["/metrics"]["get"]["responses"]["200"]["content"]) == ["text/plain; version=0.0.4"]


def test_the_openapi_document_says_whose_form_an_error_has() -> None:
    with running(says("x")) as server:
        paths = server.request("GET", "/openapi.json")[1]["paths"]
    for path, api in (("/v1/chat/completions", "OpenAI"), ("/v1/messages", "Anthropic"), ("/api/chat", "Ollama")):
        assert paths[path]["post"]["responses"]["default"]["description"] == f"an error, in {api}'s form"


def test_the_openapi_document_asks_for_a_key_when_the_server_does() -> None:
    with running(says("x")) as server:
        document = server.request("GET", "/openapi.json")[1]
        assert "security" not in document and "securitySchemes" not in document["components"]
    with running(says("x"), api_key=KEY) as server:
        document = server.request("GET", "/openapi.json", x_api_key=KEY)[1]
        assert (
            set(document["components"]["securitySchemes"]) == {"bearer", "header"} == {n for s in document["security"] for n in s}
        )
        assert document["paths"]["/health"]["get"]["security"] == []


def test_nothing_of_a_request_is_logged(capfd: pytest.CaptureFixture[str]) -> None:
    with running(says("x"), api_key=KEY) as server:
        for path in ("/v1/models?secret=1", "/nowhere?secret=1\x1b[2J"):
            sock = socket.create_connection(("127.0.0.1", server.port), timeout=10)
            with closing(sock):
                sock.sendall(f"GET {path} HTTP/1.1\r\nhost: secret\r\nauthorization: Bearer secret\r\n\r\n".encode())
                sock.recv(4096)
        server.chat("secret", temperature="secret")
    assert capfd.readouterr() == ("", "")


def test_pools_of_states_are_shown() -> None:
    backend = says("x")
    with running(backend) as server:
        stats = replace(server.call(backend.stats()), pools=(PoolStats("slot", 8, 3), PoolStats("fixed", 40, 0)))
        page = render(server.state.metrics, stats, backend.info)
    assert 'ferrum_state_places{group="0",kind="slot"} 8\n' in page
    assert 'ferrum_state_places_used{group="1",kind="fixed"} 0\n' in page
    check_page(page)
