"""llama.cpp's ``POST /infill``, which editors speak: the text between a prefix and a suffix."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta
from sanic import Request as HttpRequest
from sanic.response import HTTPResponse

from ferrum.engine.params import MAX_TOKEN_ID
from ferrum.errors import FerrumError
from ferrum.server.choice import Delta
from ferrum.server.errors import ApiError, from_ferrum
from ferrum.server.exchange import Counts, Exchange
from ferrum.server.fields import Hint, Json, Request, only
from ferrum.server.gather import Gathered
from ferrum.server.prepare import check_size, prepare_completion
from ferrum.server.protocol import MAX_STOPS, CompletionRequest, Name, Seed, Short, Stop
from ferrum.server.routes.common import read
from ferrum.server.sse import Event, Framing, ServerSentEvents
from ferrum.server.state import ServerState, state_of
from ferrum.text.fim import Infill

PARAMS = {"max_tokens": "n_predict", "prompt": "input_prefix"}


class ExtraFile(Request, kw_only=True):
    text: str
    filename: Short | None = None


class InfillRequest(Request, kw_only=True):
    """``prompt``: what was typed after the prefix."""

    input_prefix: str
    input_suffix: str
    prompt: str | None = None
    input_extra: Annotated[list[ExtraFile], Meta(max_length=64)] | None = None
    model: Name | None = None
    n_predict: Annotated[int, Meta(ge=-1, le=MAX_TOKEN_ID)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=MAX_TOKEN_ID)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    seed: Seed | None = None
    stop: Annotated[list[Stop], Meta(max_length=MAX_STOPS)] | None = None
    stream: bool | None = None
    samplers: Hint = None  # an order of what is off unless it is asked for
    n_indent: Hint = None  # these tell of the caller, or bound the time
    t_max_prompt_ms: Hint = None
    t_max_predict_ms: Hint = None
    cache_prompt: Hint = None
    id_slot: Hint = None
    n_keep: Hint = None
    response_fields: Hint = None
    repeat_penalty: Annotated[Json, only(1)] = None
    n_probs: Annotated[Json, only(0)] = None

    def check(self) -> None:
        """Nothing that the types do not say."""


_decoder = msgspec.json.Decoder(InfillRequest)
_SAME = ("model", "temperature", "top_k", "top_p", "min_p", "seed", "stop", "stream")


async def infill(request: HttpRequest) -> HTTPResponse | None:
    state = state_of(request)
    how = infill_of(state)
    body = await read(request, _decoder)
    state.check_model(body.model)
    exchange = Exchange(request, "infill-", stream=bool(body.stream), params=PARAMS)
    fields: dict[str, Any] = {name: getattr(body, name) for name in _SAME}
    prompt: Any = await _tokens(state, how, body)
    completion = CompletionRequest(prompt=prompt, max_tokens=body.n_predict or None, **fields)
    completion.check()
    return await exchange.run(
        lambda: prepare_completion(state, completion, how.end_ids),
        lambda _: InfillWriter(state.model_name),
        continues=True,
    )


def infill_of(state: ServerState) -> Infill:
    """Raises ApiError where the model cannot."""
    if state.infill is None:
        message = "this model makes no text between a prefix and a suffix: its tokenizer has no tokens for it"
        raise ApiError(400, message, param="model", code="unsupported_by_model")
    return state.infill


async def _tokens(state: ServerState, how: Infill, body: InfillRequest) -> list[int]:
    extra = [(file.filename or "file", file.text) for file in body.input_extra or ()]
    size = len(body.input_prefix) + len(body.input_suffix) + len(body.prompt or "") + sum(len(text) for _, text in extra)
    check_size(size, state.max_chars, "input_prefix")
    try:
        return await state.off_loop(size, how.tokens, body.input_prefix + (body.prompt or ""), body.input_suffix, extra)
    except FerrumError as error:
        raise from_ferrum(error) from None


class InfillWriter:
    """llama.cpp's form: one object, or one for each piece of which the last has the counts."""

    framing: Framing = ServerSentEvents()

    def __init__(self, model: str) -> None:
        self._model = model
        self._gathered = Gathered()

    def opening(self, counts: Counts) -> list[Event]:
        return []

    def chunk(self, delta: Delta) -> list[Event]:
        self._gathered.add(delta)
        return [Event({"index": 0, "content": delta.content, "stop": False})] if delta.content else []

    def closing(self, counts: Counts) -> list[Event]:
        return [Event({**self._ended(counts), "content": ""})]

    def failed(self, error: ApiError) -> list[Event]:
        return [Event(error.body(), "error")]

    def add(self, delta: Delta) -> None:
        self._gathered.add(delta)

    def whole(self, counts: Counts) -> dict[str, Any]:
        return self._ended(counts)

    def _ended(self, counts: Counts) -> dict[str, Any]:
        return {
            "index": 0,
            "content": self._gathered.content,
            "stop": True,
            "stop_type": "limit" if self._gathered.finish_reason == "length" else "eos",
            "truncated": False,
            "model": self._model,
            "tokens_evaluated": counts.prompt,
            "tokens_predicted": counts.completion,
            "tokens_cached": counts.cached,
        }
