"""Browsers: which pages may use the server and read its answers, and under which names it is reached."""

from __future__ import annotations

import pytest

from ferrum.errors import FerrumError
from ferrum.server.options import ServeOptions
from ferrum.server.origins import Gate, check_origins
from tests.server.harness import Running, chat_body, running, says

KEY = "correct-horse-battery"
LOCAL = ("http://localhost:3000", "https://localhost", "http://127.0.0.1:8000", "http://[::1]", "http://app.localhost:5173")
FOREIGN = (
    "http://evil.example", "null", "http://127.0.0.1.evil.example", "http://[", "file://", "http://evil.example@localhost",
    "http://localhost.evil.example", "http://0.0.0.0:80", "vscode-webview://abc", "app://obsidian.md", "ftp://localhost", "",
)  # fmt: skip
ALLOW = "access-control-allow-origin"


def preflight(server: Running, origin: str, **headers: str) -> tuple[int, dict[str, str]]:
    asked = {"access_control_request_method": "POST", "access_control_request_headers": "authorization,x-stainless-os"}
    status, _, found = server.request("OPTIONS", "/v1/chat/completions", origin=origin, **asked, **headers)
    return status, found


def test_pages_of_this_machine_may_read_answers_and_others_are_refused() -> None:
    with running(says("x")) as server:
        for origin in LOCAL:
            for path, body in (("/v1/models", None), ("/v1/chat/completions", chat_body()), ("/nowhere", None)):
                _, _, headers = server.request("POST" if body else "GET", path, body, origin=origin)
                assert headers[ALLOW] == origin and headers["vary"] == "origin"
            status, headers = preflight(server, origin)
            assert status == 200 and headers[ALLOW] == origin and "POST" in headers["access-control-allow-methods"]
            assert headers["access-control-allow-headers"] == "authorization, x-stainless-os"
        for origin in FOREIGN:
            status, answer, headers = server.request("GET", "/v1/models", origin=origin)
            assert status == 403 and ALLOW not in headers and answer["error"]["code"] == "forbidden_origin"
            status, headers = preflight(server, origin)
            assert status == 200 and not [name for name in headers if name.startswith("access-control")]
        assert ALLOW not in server.request("GET", "/v1/models")[2]


def test_streams_and_refusals_may_be_read_too() -> None:
    with running(says("x"), api_key=KEY) as server:
        body = chat_body(stream=True)
        origin = "http://localhost:3000"
        status, _, headers = server.post("/v1/chat/completions", body, origin=origin, authorization=f"Bearer {KEY}")
        assert status == 200 and headers[ALLOW] == origin
        status, _, headers = server.post("/v1/chat/completions", body, origin=origin)
        assert status == 401 and headers[ALLOW] == origin


def test_with_a_key_a_preflight_needs_none_and_other_pages_learn_nothing() -> None:
    with running(says("x"), api_key=KEY) as server:
        status, headers = preflight(server, LOCAL[0], access_control_request_private_network="true")
        assert status == 200 and headers["access-control-allow-private-network"] == "true"
        assert ALLOW not in preflight(server, "http://evil.example")[1]
        status, _, headers = server.request("GET", "/v1/models", origin="http://evil.example", x_api_key=KEY)
        assert status == 200 and ALLOW not in headers
        assert server.request("OPTIONS", "/v1/models", origin=LOCAL[0])[0] == 401  # no preflight


def test_origins_by_name() -> None:
    named = ["https://chat.example:8443/", "vscode-webview://*", "App://obsidian.md", "null"]
    with running(says("x"), allowed_origins=named) as server:
        for origin in ("https://chat.example:8443", "vscode-webview://1abc", "app://obsidian.md", "null", *LOCAL):
            assert server.request("GET", "/v1/models", origin=origin)[2][ALLOW] == origin
            assert preflight(server, origin)[1][ALLOW] == origin
        for origin in ("https://chat.example", "http://chat.example:8443", "app://other", "file://", "chrome-extension://x"):
            assert server.request("GET", "/v1/models", origin=origin)[0] == 403
    with running(says("x"), allowed_origins=["*"]) as server:
        assert server.request("GET", "/v1/models", origin="chrome-extension://x")[0] == 200


def test_what_is_no_origin_is_refused_at_the_start() -> None:
    assert check_origins([" https://A.example/ ", ""]) == ("https://a.example",)
    for bad in ("example.org", "https://", "https://a/b", "https://a b", "//x"):
        with pytest.raises(FerrumError) as caught:
            ServeOptions(allowed_origins=(bad,))
        assert caught.value.code == "bad-option" and caught.value.where == "--allowed-origins"


def test_without_a_key_the_host_is_this_machine() -> None:
    with running(says("x")) as server:
        for host in ("localhost", "LOCALHOST:8000", "127.0.0.1", "127.8.8.8:1", "[::1]:8000", "ferrum.localhost"):
            assert server.request("GET", "/v1/models", host=host)[0] == 200, host
        for host in (
            "evil.example",
            "evil.example:8000",
            "localhost.evil.example",
            "10.0.0.7",
            "[::2]",
            "[",
            "",
            "a@localhost@b",
        ):
            status, answer, _ = server.request("GET", "/v1/models", host=host)
            assert status == 403 and answer["error"]["code"] == "forbidden_host", host
        assert server.request("GET", "/health", host="evil.example")[0] == 403
    with running(says("x"), api_key=KEY) as server:
        assert server.request("GET", "/v1/models", host="models.example", x_api_key=KEY)[0] == 200
    assert Gate("0.0.0.0").allows_host("models.example") and Gate("127.0.0.2").allows_host("127.0.0.2:80")
