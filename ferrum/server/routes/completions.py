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
        tops = [self._named(s) for s in scores]
        return CompletionLogprobs(
            tokens=[names[s.token] for s, names in zip(scores, tops, strict=True)],
            token_logprobs=[finite(s.logprob) for s in scores],
            top_logprobs=[
                {names[token]: finite(logprob) for token, logprob in alternatives(s)}
                for s, names in zip(scores, tops, strict=True)
            ],
            text_offset=[s.offset for s in scores],
        )

    def _named(self, score: ScoredToken) -> dict[int, str]:
        """A name of its own for each token of one position, the sampled one first: several may stand for the same text."""
        names: dict[int, str] = {}
        taken: set[str] = set()
        for token in (score.token, *(t for t, _ in score.top)):
            name = spelled(self._tokenizer.token_bytes(token))
            names[token] = name if name not in taken else f"token_id:{token}"
            taken.add(name)
        return names


def alternatives(score: ScoredToken) -> list[tuple[int, float]]:
    """The most likely tokens and the sampled one, likeliest first."""
    sampled = [] if any(t == score.token for t, _ in score.top) else [(score.token, score.logprob)]
    return sorted([*score.top, *sampled], key=lambda pair: -pair[1])


def spelled(raw: bytes) -> str:
    """A token's text; what is not UTF-8 by itself as OpenAI writes it."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{b:02x}" for b in raw)
