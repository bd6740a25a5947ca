"""A server on a real loopback socket, in a thread of the test's process, over the fake engine."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from ferrum.engine.params import SamplingParams
from ferrum.pack.schema import TextRecord
from ferrum.server.lifecycle import HttpServer
from ferrum.server.listening import bind
from ferrum.server.options import ServeOptions
from ferrum.server.state import ServerState
from ferrum.text.chat_template import ChatTemplate
from ferrum.text.tokenizer import Tokenizer
from tests.server.fake import FakeBackend

TINY = Path(__file__).parents[2] / "graphs" / "tiny"
TEXT = TextRecord(special_tokens={"eos_token": "<|im_end|>"}, eos_token_ids=[761], tool_format="hermes")


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer((TINY / "model" / "tokenizer.json").read_bytes())


@cache
def template() -> ChatTemplate:
    return ChatTemplate((TINY / "chat_template.jinja").read_text(encoding="utf-8"))


def says(text: str) -> FakeBackend:
    """An engine that always answers ``text``."""
    ids = tokenizer().encode(text, special=False)
    return FakeBackend(lambda prompt, params, index: ids)


def echoes() -> FakeBackend:
    """An engine that repeats the prompt's last 8 tokens."""
    return FakeBackend(lambda prompt, params, index: list(prompt)[-8:])


def seeded(prompt: Any, params: SamplingParams, index: int) -> list[int]:
    """Printable tokens that depend on the seed and the choice."""
    seed = (params.seed or 0) * 31 + index * 7
    return [300 + (seed + i * i) % 60 for i in range(12)]


@dataclass
class Running:
    """A server that runs in another thread. ``call`` runs a coroutine there."""

    port: int
    state: ServerState
    server: HttpServer
    loop: asyncio.AbstractEventLoop
    backend: FakeBackend = field(init=False)

    def __post_init__(self) -> None:
        self.backend = self.state.backend  # type: ignore[assignment]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def call(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(20)

    def run(self, function: Callable[[], Any]) -> Any:
        async def work() -> Any:
            return function()

        return self.call(work())

    def request(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, dict[str, str]]:
        """Status, decoded JSON (or text) and headers."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=20)
        raw = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
        defaults = {"content-type": "application/json"} if raw is not None else {}
        try:
            connection.request(method, path, raw, {**defaults, **{k.replace("_", "-"): v for k, v in headers.items()}})
            response = connection.getresponse()
            data = response.read()
            found = {k.lower(): v for k, v in response.getheaders()}
        finally:
            connection.close()
        is_json = data and found.get("content-type", "").startswith("application/json") and data
        return response.status, json.loads(data) if is_json else data.decode(), found

    def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any, dict[str, str]]:
        return self.request("POST", path, body, **headers)

    def chat(self, content: str = "hi", **fields: Any) -> tuple[int, Any, dict[str, str]]:
        return self.post("/v1/chat/completions", chat_body(content, **fields))


def chat_body(content: str = "hi", **fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": content}], **fields}


@contextmanager
def running(backend: FakeBackend, text: TextRecord = TEXT, **options: Any) -> Iterator[Running]:
    """A server over ``backend``; ``options`` of ``ServeOptions``."""
    ready: threading.Event = threading.Event()
    made: list[Running] = []
    failed: list[BaseException] = []
    finish = asyncio.Event()

    async def main() -> None:
        sock = bind("127.0.0.1", 0)
        serve_options = replace(ServeOptions(port=0, quiet=True), **options)
        state = ServerState(serve_options, backend, tokenizer(), template(), text, "tiny")  # type: ignore[arg-type]
        server = HttpServer(state, sock)
        await server.start()
        made.append(Running(sock.getsockname()[1], state, server, asyncio.get_running_loop()))
        ready.set()
        await finish.wait()
        await backend.close()
        await server.close()
        state.close()

    def work() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            failed.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=work)
    thread.start()
    ready.wait(20)
    if failed:
        raise failed[0]
    try:
        yield made[0]
    finally:
        made[0].loop.call_soon_threadsafe(finish.set)
        thread.join(20)
        assert not thread.is_alive()


def sse_events(raw: str) -> list[Any]:
    """The data of a stream's events, decoded; "[DONE]" stays a string."""
    lines = [line.removeprefix("data: ") for line in raw.split("\n") if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]
