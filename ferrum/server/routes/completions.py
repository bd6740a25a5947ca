"""``POST /v1/completions``."""

from __future__ import annotations

from typing import Any

import msgspec
from sanic import Request
from sanic.response import HTTPResponse

from ferrum.server.answers import CompletionLogprobs, TextChoice
from ferrum.server.choice import Delta, ScoredToken
from ferrum.server.prepare import Prepared, prepare_completion
from ferrum.server.protocol import CompletionRequest
from ferrum.server.routes.chat import finite
from ferrum.server.routes.common import Exchange, read
from ferrum.text.tokenizer import Tokenizer

_decoder = msgspec.json.Decoder(CompletionRequest)


async def completions(request: Request) -> HTTPResponse | None:
    body = await read(request, _decoder)
    exchange = Exchange(request, "cmpl", stream=bool(body.stream), include_usage=body.include_usage)
    exchange.state.check_model(body.model)

    def make_writer(prepared: Prepared) -> TextWriter:
        return TextWriter(exchange.state.tokenizer, prepared)

    return await exchange.run(lambda: prepare_completion(exchange.state, body), make_writer, continues=True)


class TextWriter:
    """Text choices, whole or in chunks, which have the same form."""

    object = "text_completion"
    chunk_object = "text_completion"

    def __init__(self, tokenizer: Tokenizer, prepared: Prepared) -> None:
        self._tokenizer = tokenizer
        self._logprobs = prepared.text.logprobs
        self._parts: list[list[Delta]] = [[] for _ in range(prepared.sampling.n * len(prepared.prompts))]

    def opening(self) -> list[Any]:
        return []

    def chunk(self, delta: Delta) -> list[Any]:
        return [
            TextChoice(
                index=delta.index, text=delta.content, logprobs=self._scores(delta.scores), finish_reason=delta.finish_reason
            )
        ]

    def add(self, delta: Delta) -> None:
        self._parts[delta.index].append(delta)

    def whole(self) -> list[Any]:
        return [
            TextChoice(
                index=index,
                text="".join(d.content for d in deltas),
                logprobs=self._scores([s for d in deltas for s in d.scores]),
                finish_reason=deltas[-1].finish_reason,
            )
            for index, deltas in enumerate(self._parts)
        ]

    def _scores(self, scores: list[ScoredToken]) -> CompletionLogprobs | None:
        if not self._logprobs:
            return None
        spell = self._tokenizer.token_text
        return CompletionLogprobs(
            tokens=[spell(s.token) for s in scores],
            token_logprobs=[finite(s.logprob) for s in scores],
            top_logprobs=[{spell(t): finite(p) for t, p in reversed(s.top)} for s in scores],
            text_offset=[s.offset for s in scores],
        )
