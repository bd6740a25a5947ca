"""``POST /v1/chat/completions``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import UNSET, Raw
from sanic import Request
from sanic.response import HTTPResponse

from ferrum.server.answers import (
    CallDelta,
    ChatChoice,
    ChatChunkChoice,
    ChatLogprobs,
    ChatMessage,
    Completion,
    FunctionDelta,
    Logprob,
    TokenLogprob,
)
from ferrum.server.choice import CallPiece, Delta, ScoredToken
from ferrum.server.errors import ApiError
from ferrum.server.exchange import Counts, Exchange
from ferrum.server.gather import Gathered, GatheredCall
from ferrum.server.prepare import Prepared, prepare_chat
from ferrum.server.protocol import ChatRequest
from ferrum.server.routes.common import read
from ferrum.server.routes.envelope import Envelope
from ferrum.server.sse import Event, Framing
from ferrum.server.wire import encode
from ferrum.text.tokenizer import Tokenizer

_decoder = msgspec.json.Decoder(ChatRequest)


async def chat_completions(request: Request) -> HTTPResponse | None:
    body = await read(request, _decoder)
    exchange = Exchange(request, "chatcmpl-", stream=bool(body.stream))
    exchange.state.check_model(body.model)
    envelope = Envelope(exchange, include_usage=body.include_usage)
    return await exchange.run(
        lambda: prepare_chat(exchange.state, body, len(request.body)),
        lambda prepared: ChatWriter(envelope, exchange.state.tokenizer, prepared),
        continues=body.ends == "continued",
    )


class ChatWriter:
    """Chat choices, whole or in chunks."""

    framing: Framing = Envelope.framing
    _whole = "chat.completion"
    _chunk = "chat.completion.chunk"

    def __init__(self, envelope: Envelope, tokenizer: Tokenizer, prepared: Prepared) -> None:
        self._envelope = envelope
        self._tokenizer = tokenizer
        self._logprobs = prepared.text.logprobs
        self._choices = [Gathered() for _ in range(prepared.sampling.n)]

    def opening(self, counts: Counts) -> list[Event]:
        delta = ChatMessage(role="assistant", content="")
        return [self._event(ChatChunkChoice(index=i, delta=delta)) for i in range(len(self._choices))]

    def closing(self, counts: Counts) -> list[Event]:
        return self._envelope.closing(self._chunk, counts)

    def failed(self, error: ApiError) -> list[Event]:
        return self._envelope.failed(error)

    def chunk(self, delta: Delta) -> list[Event]:
        """Up to two chunks: what is new, and the finish reason with an empty delta, as OpenAI sends it."""
        message = ChatMessage()
        if delta.reasoning:
            message.reasoning_content = delta.reasoning
        if delta.content:
            message.content = delta.content
        if delta.calls:
            message.tool_calls = [call_delta(piece) for piece in delta.calls]
        scores = self._scores(delta.scores) if delta.scores and self._logprobs else None
        choices = []
        if delta.content or delta.reasoning or delta.calls or delta.scores:
            choices.append(ChatChunkChoice(index=delta.index, delta=message, logprobs=scores))
        if delta.finish_reason:
            choices.append(ChatChunkChoice(index=delta.index, delta=ChatMessage(), finish_reason=delta.finish_reason))
        return [self._event(choice) for choice in choices]

    def _event(self, choice: ChatChunkChoice) -> Event:
        return self._envelope.chunk(self._chunk, choice)

    def add(self, delta: Delta) -> None:
        self._choices[delta.index].add(delta)

    def whole(self, counts: Counts) -> Completion:
        choices = [Raw(encode(self._choice(i, gathered))) for i, gathered in enumerate(self._choices)]
        return self._envelope.whole(self._whole, choices, counts)

    def _choice(self, index: int, gathered: Gathered) -> ChatChoice:
        content, calls = gathered.content, [whole_call(c) for c in gathered.calls]
        message = ChatMessage(role="assistant", content=content if content or not calls else None)
        if gathered.reasoning:
            message.reasoning_content = gathered.reasoning
        if calls:
            message.tool_calls = calls
        scores = self._scores(gathered.scores) if self._logprobs else None
        return ChatChoice(index=index, message=message, logprobs=scores, finish_reason=gathered.finish_reason)

    def _scores(self, scores: Iterable[ScoredToken]) -> ChatLogprobs:
        """Each token as JSON at once: as objects they would take several times the memory."""
        return ChatLogprobs(content=[Raw(encode(token_logprob(self._tokenizer, s))) for s in scores])


def token_logprob(tokenizer: Tokenizer, score: ScoredToken) -> TokenLogprob:
    """A token of an answer with its alternatives."""

    def spelled(token: int, logprob: float) -> dict[str, Any]:
        return {
            "token": tokenizer.token_text(token),
            "logprob": finite(logprob),
            "bytes": list(tokenizer.token_bytes(token)),
        }

    tops = [Logprob(**spelled(token, logprob)) for token, logprob in score.top]
    return TokenLogprob(**spelled(score.token, score.logprob), top_logprobs=tops)


def finite(logprob: float) -> float:
    """JSON has no infinity: a probability of 0 is written as OpenAI does."""
    return max(logprob, -9999.0)


def call_delta(piece: CallPiece) -> CallDelta:
    function = FunctionDelta(name=piece.name or UNSET, arguments=piece.arguments)
    if not piece.id:
        return CallDelta(index=piece.index, function=function)
    return CallDelta(index=piece.index, id=piece.id, type="function", function=function)


def whole_call(call: GatheredCall) -> CallDelta:
    function = FunctionDelta(name=call.name, arguments=call.arguments.getvalue())
    return CallDelta(id=call.id, type="function", function=function)
