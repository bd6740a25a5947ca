"""Ollama's ``POST /api/embed``, and ``/api/embeddings`` of before."""

from __future__ import annotations

import time
from typing import Annotated

import msgspec
from msgspec import Meta
from sanic import Request as HttpRequest
from sanic.response import HTTPResponse

from ferrum.server.dialects.ollama import check_model
from ferrum.server.embed import MAX_INPUTS, Wish, embedded
from ferrum.server.fields import Hint, Request
from ferrum.server.routes.common import answer, read
from ferrum.server.routes.embeddings import INLINE_ROWS, numbers
from ferrum.server.state import state_of


class EmbedRequest(Request, kw_only=True):
    input: str | Annotated[list[str], Meta(min_length=1, max_length=MAX_INPUTS)]
    model: Annotated[str, Meta(max_length=256)] | None = None
    truncate: bool | None = None  # what is too long loses its end, unless this is false
    dimensions: Annotated[int, Meta(ge=1, le=1 << 20)] | None = None
    options: Hint = None
    keep_alive: Hint = None

    def check(self) -> None:
        """Nothing that the types do not say."""


class OneEmbedRequest(Request, kw_only=True):
    prompt: str
    model: Annotated[str, Meta(max_length=256)] | None = None
    options: Hint = None
    keep_alive: Hint = None

    def check(self) -> None:
        """Nothing that the types do not say."""


_embed = msgspec.json.Decoder(EmbedRequest)
_one = msgspec.json.Decoder(OneEmbedRequest)


async def embed(request: HttpRequest) -> HTTPResponse:
    started = time.monotonic_ns()
    body, state = await read(request, _embed), state_of(request)
    check_model(state, body.model)
    texts = [body.input] if isinstance(body.input, str) else body.input
    found = await embedded(request, Wish(texts, body.dimensions or 0, cut=body.truncate is not False))

    def told() -> HTTPResponse:
        made = {"model": body.model or state.model_name, "embeddings": [numbers(row) for row in found.rows]}
        times = {"total_duration": time.monotonic_ns() - started, "load_duration": 0}
        return answer({**made, **times, "prompt_eval_count": found.tokens})

    return told() if len(found.rows) <= INLINE_ROWS else await state.in_thread(told)


async def embed_one(request: HttpRequest) -> HTTPResponse:
    body = await read(request, _one)
    check_model(state_of(request), body.model)
    found = await embedded(request, Wish([body.prompt], cut=True, field="prompt"))
    return answer({"embedding": numbers(found.rows[0])})
