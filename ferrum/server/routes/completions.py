"""``POST /v1/completions``."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from msgspec import Raw
from sanic import Request
from sanic.response import HTTPResponse

from ferrum.server.answers import Completion, CompletionLogprobs, TextChoice
from ferrum.server.choice import Delta, ScoredToken
from ferrum.server.errors import ApiError
from ferrum.server.exchange import Counts, Exchange
from ferrum.server.gather import Gathered
from ferrum.server.prepare import Prepared, prepare_completion
from ferrum.server.protocol import CompletionRequest
from ferrum.server.routes.chat import finite
from ferrum.server.routes.common import read
from ferrum.server.routes.envelope import Envelope
from ferrum.server.sse import Event, Framing
from ferrum.server.wire import encode
from ferrum.text.tokenizer import Tokenizer

_decoder = msgspec.json.Decoder(CompletionRequest)


async def completions(request: Request) -> HTTPResponse | None:
    body = await read(request, _decoder)
    exchange = Exchange(request, "cmpl-", stream=bool(body.stream))
    exchange.state.check_model(body.model)
    envelope = Envelope(exchange, include_usage=body.include_usage)
    return await exchange.run(
        lambda: prepare_completion(exchange.state, body),
        lambda prepared: TextWriter(envelope, exchange.state.tokenizer, prepared),
        continues=True,
    )


class TextWriter:
    """Text choices, whole or in chunks, which have the same form."""

    framing: Framing = Envelope.framing
    _object = "text_completion"

    def __init__(self, envelope: Envelope, tokenizer: Tokenizer, prepared: Prepared) -> None:
        self._envelope = envelope
        self._tokenizer = tokenizer
        self._logprobs = prepared.text.logprobs
        self._choices = [Gathered() for _ in range(prepared.sampling.n * len(prepared.prompts))]

    def opening(self, counts: Counts) -> list[Event]:
        return []

    def closing(self, counts: Counts) -> list[Event]:
        return self._envelope.closing(self._object, counts)

    def failed(self, error: ApiError) -> list[Event]:
        return self._envelope.failed(error)

    def chunk(self, delta: Delta) -> list[Event]:
        scores, reason = self._scores(delta.scores), delta.finish_reason
        choice = TextChoice(index=delta.index, text=delta.content, logprobs=scores, finish_reason=reason)
        return [self._envelope.chunk(self._object, choice)]

    def add(self, delta: Delta) -> None:
        self._choices[delta.index].add(delta)

    def whole(self, counts: Counts) -> Completion:
        choices = [Raw(encode(self._choice(i, gathered))) for i, gathered in enumerate(self._choices)]
        return self._envelope.whole(self._object, choices, counts)

    def _choice(self, index: int, gathered: Gathered) -> TextChoice:
        scores, reason = self._scores(gathered.scores), gathered.finish_reason
        return TextChoice(index=index, text=gathered.content, logprobs=scores, finish_reason=reason)

    def _scores(self, scores: Iterable[ScoredToken]) -> CompletionLogprobs | None:
        if not self._logprobs:
            return None
        made = CompletionLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
        for score in scores:
            names = self._named(score)
            made.tokens.append(names[score.token])
            made.token_logprobs.append(finite(score.logprob))
            made.top_logprobs.append(Raw(encode({names[t]: finite(p) for t, p in alternatives(score)})))
            made.text_offset.append(score.offset)
        return made

    def _named(self, score: ScoredToken) -> dict[int, str]:
        """A name of its own for each token of one position, the sampled one first: several may stand for the same text."""
        names: dict[int, str] = {}
        taken: set[str] = set()
        for token in dict.fromkeys((score.token, *(t for t, _ in score.top))):
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
