"""Several keys: names, limits that say when to come again, and nothing of one key's shown to another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai
import pytest

from ferrum.errors import FerrumError
from ferrum.server.errors import ApiError
from ferrum.server.keys import Key, read_keys
from ferrum.server.meters import Budget, Meter
from ferrum.server.options import ServeOptions
from tests.server.harness import Running, chat_body, echoes, running, says

ALICE, BOB = "alice-secret-1", "bob-secret-22"
KEYS = (Key(secret=ALICE, name="alice"), Key(secret=BOB, name="bob", requests_per_minute=3))


def chat(server: Running, key: str, **fields: Any) -> tuple[int, Any, dict[str, str]]:
    return server.post("/v1/chat/completions", chat_body(**fields), x_api_key=key)


def test_each_key_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    with running(says("x"), named_keys=KEYS, api_key="the-plain-one", verbose=1) as server:
        assert [chat(server, key)[0] for key in (ALICE, BOB, "the-plain-one", "nobody-at-all", "")] == [200, 200, 200, 401, 401]
        assert server.request("GET", "/v1/models", authorization=f"Bearer {ALICE}")[0] == 200
        salts = len({server.backend.salts[-1 - i] for i in range(3)})
        assert salts == 3, "no key is answered from another one's cached prefixes"
    lines = capsys.readouterr().err
    assert "key=alice" in lines and "key=bob" in lines and ALICE not in lines


def test_requests_a_minute() -> None:
    with running(says("x"), named_keys=KEYS) as server:
        seen = [chat(server, BOB) for _ in range(4)]
        assert [status for status, _, _ in seen] == [200, 200, 200, 429]
        status, body, headers = seen[-1]
        assert body["error"]["code"] == "rate_limit_exceeded" and body["error"]["type"] == "rate_limit_error"
        assert 15 <= int(headers["retry-after"]) <= 20, "three a minute: one in 20 s"
        assert seen[0][2]["x-ratelimit-limit-requests"] == "3" and seen[0][2]["x-ratelimit-remaining-requests"] == "2"
        assert server.request("GET", "/v1/models", x_api_key=BOB)[0] == 200 and chat(server, ALICE)[0] == 200
        with pytest.raises(openai.RateLimitError):
            api = openai.OpenAI(base_url=f"{server.url}/v1", api_key=BOB, max_retries=0)
            api.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "x"}])


def test_tokens_a_minute() -> None:
    key = Key(secret=ALICE, name="alice", tokens_per_minute=60)
    with running(says("ab 1 " * 40), named_keys=(key,)) as server:
        status, body, _ = chat(server, ALICE, max_tokens=100)
        used = body["usage"]["total_tokens"]
        assert status == 200 and used > 60
        status, body, headers = chat(server, ALICE)
        assert status == 429 and body["error"]["message"] == "this key may have 60 tokens a minute"
        assert used - 60 - 2 <= int(headers["retry-after"]) <= used - 60 + 2, "one comes back each second"


def test_requests_at_once() -> None:
    clock = [0.0]
    meter = Meter(Key(secret=ALICE, name="a", concurrent=2), lambda: clock[0])
    with meter.admitted(), meter.admitted(), pytest.raises(ApiError) as refused, meter.admitted():
        pass
    assert refused.value.status == 429 and meter.running == 0


def test_a_budget_is_paid_back() -> None:
    clock = [0.0]
    budget = Budget(60, lambda: clock[0])
    budget.spend(90)
    assert budget.seconds_until(1) == pytest.approx(31)
    clock[0] = 31
    assert budget.seconds_until(1) == 0
    clock[0] = 1e6
    assert budget.left() == 60, "no more than a minute's worth is saved up"


def test_a_key_sees_its_own_only(tmp_path: Path) -> None:
    with running(echoes(), named_keys=KEYS, batch_dir=tmp_path) as server:
        alice, bob = (openai.OpenAI(base_url=f"{server.url}/v1", api_key=k, max_retries=0) for k in (ALICE, BOB))
        made = alice.responses.create(model="tiny", input="hi")
        file = alice.files.create(file=("a", b"x"), purpose="batch")
        assert alice.responses.retrieve(made.id).id == made.id and [f.id for f in alice.files.list()] == [file.id]
        for call in (
            lambda: bob.responses.retrieve(made.id),
            lambda: bob.responses.delete(made.id),
            lambda: bob.files.content(file.id),
            lambda: bob.files.delete(file.id),
        ):
            with pytest.raises(openai.NotFoundError):
                call()
        assert list(bob.files.list()) == []
        with pytest.raises(openai.BadRequestError):
            bob.responses.create(model="tiny", input="hi", previous_response_id=made.id)


def test_a_batch_has_its_keys_limits(tmp_path: Path) -> None:
    key = Key(secret=ALICE, name="alice", tokens_per_minute=1200)
    with running(says("ab 1 " * 40), named_keys=(key,), batch_dir=tmp_path) as server:
        api = openai.OpenAI(base_url=f"{server.url}/v1", api_key=ALICE, max_retries=0)
        lines = [
            {"custom_id": str(i), "method": "POST", "url": "/v1/chat/completions", "body": {**chat_body("hi"), "max_tokens": 100}}
            for i in range(2)
        ]
        file = api.files.create(file=("a", "\n".join(map(json.dumps, lines)).encode()), purpose="batch")
        api.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
        meter = server.state.meters["alice"]
        while not server.backend.requests or meter.running:
            server.call(_tick())
        assert meter.tokens.left() < 1150


async def _tick() -> None:
    import asyncio

    await asyncio.sleep(0.02)


def test_a_file_of_keys(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(f'[alice]\nkey = "{ALICE}"\n[bob]\nkey = "{BOB}"\nrequests_per_minute = 3\n')
    assert read_keys(path) == KEYS
    for text, told in {
        "": "different keys",
        "x": "not valid TOML",
        'key = "x"': "a table",
        "[a]": "a table",
        f'[a]\nkey = "{ALICE}"\nrequests_per_hour = 1': "requests_per_hour is not known",
        f'[a]\nkey = "{ALICE}"\nconcurrent = -1': "whole number",
        f'[a]\nkey = "{ALICE}"\nconcurrent = true': "whole number",
        f'[a]\nkey = "{ALICE}"\n[b]\nkey = "{ALICE}"': "different keys",
    }.items():
        path.write_text(text)
        with pytest.raises(FerrumError, match=told) as refused:
            read_keys(path)
        assert ALICE not in str(refused.value)
    with pytest.raises(FerrumError, match="cannot read"):
        read_keys(tmp_path / "none")


def test_keys_open_an_address_to_others() -> None:
    ServeOptions(host="0.0.0.0", named_keys=KEYS)
    with pytest.raises(FerrumError, match="at least 8"):
        ServeOptions(host="0.0.0.0", named_keys=(Key(secret="short", name="a"),))


def test_a_full_queue_says_when_to_come_again() -> None:
    backend = says("x")
    with running(backend) as server:
        server.chat()
        server.run(lambda: server.state.metrics.request_duration.observe(95.0 * 16 * 2))
        backend.max_running = 0
        status, _, headers = server.chat()
        assert status == 429 and 90 <= int(headers["retry-after"]) <= 100
