"""``POST /v1/embeddings``."""

from __future__ import annotations

from array import array
from base64 import b64encode
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta
from sanic import Request as HttpRequest
from sanic.response import HTTPResponse

from ferrum.server.embed import MAX_INPUTS, Embedded, Input, Wish, embedded
from ferrum.server.fields import Hint, Request
from ferrum.server.protocol import Name, TokenId
from ferrum.server.routes.common import answer, read
from ferrum.server.state import state_of
from ferrum.server.wire import BadRequest

INLINE_ROWS = 16  # an answer of more is encoded in a thread
Tokens: TypeAlias = list[TokenId]


class EmbeddingRequest(Request, kw_only=True):
    # texts, or token ids as they are: msgspec knows one kind of array, so what is in it is looked at below
    input: str | Annotated[list[str | TokenId | Tokens], Meta(min_length=1)]
    model: Name | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1, le=1 << 20)] | None = None
    prompt_name: Name | None = None  # which of the model's prompts goes before each text
    user: Hint = None

    def check(self) -> None:
        if isinstance(self.input, str):
            return
        if len({type(one) for one in self.input}) > 1:
            raise BadRequest("input must hold texts, or token ids, or lists of these", "input")
        if not isinstance(self.input[0], int) and len(self.input) > MAX_INPUTS:
            raise BadRequest(f"input may have {MAX_INPUTS} texts", "input")

    def inputs(self) -> list[Input]:
        given: Any = self.input
        return [given] if isinstance(given, str) or isinstance(given[0], int) else given


_decoder = msgspec.json.Decoder(EmbeddingRequest)


async def embeddings(request: HttpRequest) -> HTTPResponse:
    body = await read(request, _decoder)
    state = state_of(request)
    state.check_model(body.model)
    found = await embedded(request, Wish(body.inputs(), body.dimensions or 0, body.prompt_name))

    def told() -> HTTPResponse:
        return answer(made(found, state.model_name, body.encoding_format == "base64"))

    return told() if len(found.rows) <= INLINE_ROWS else await state.in_thread(told)


def made(found: Embedded, model: str, base64: bool) -> dict[str, Any]:
    """The answer as OpenAI's API has it."""
    shown = [b64encode(row).decode() if base64 else numbers(row) for row in found.rows]
    data = [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(shown)]
    usage = {"prompt_tokens": found.tokens, "total_tokens": found.tokens}
    return {"object": "list", "data": data, "model": model, "usage": usage}


def numbers(row: bytes) -> list[float]:
    return array("f", row).tolist()
