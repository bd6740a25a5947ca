"""``POST /v1/chat/completions``."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET
from sanic import Request
from sanic.response import HTTPResponse

from ferrum.server.answers import (
    CallDelta,
    ChatChoice,
    ChatChunkChoice,
    ChatLogprobs,
    ChatMessage,
    FunctionDelta,
    Logprob,
    TokenLogprob,
)
from ferrum.server.choice import CallPiece, Delta, ScoredToken
from ferrum.server.prepare import Prepared, prepare_chat
from ferrum.server.protocol import ChatRequest
from ferrum.server.routes.common import Exchange, read
from ferrum.text.tokenizer import Tokenizer

_decoder = msgspec.json.Decoder(ChatRequest)


async def chat_completions(request: Request) -> HTTPResponse | None:
    body = await read(request, _decoder)
    exchange = Exchange(request, "chatcmpl", stream=bool(body.stream), include_usage=body.include_usage)
    exchange.state.check_model(body.model)

    def make_writer(prepared: Prepared) -> ChatWriter:
        return ChatWriter(exchange.state.tokenizer, prepared)

    return await exchange.run(lambda: prepare_chat(exchange.state, body, len(request.body)), make_writer, continues=False)


class ChatWriter:
    """Chat choices, whole or in chunks."""

    object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def __init__(self, tokenizer: Tokenizer, prepared: Prepared) -> None:
        self._tokenizer = tokenizer
        self._logprobs = prepared.text.logprobs
        self._parts: list[list[Delta]] = [[] for _ in range(prepared.sampling.n)]

    def opening(self) -> list[Any]:
        delta = ChatMessage(role="assistant", content="")
        return [ChatChunkChoice(index=i, delta=delta) for i in range(len(self._parts))]

    def chunk(self, delta: Delta) -> list[Any]:
        """Up to two chunks: what is new, and the finish reason with an empty delta, as OpenAI sends it."""
        message = ChatMessage()
        if delta.reasoning:
            message.reasoning_content = delta.reasoning
        if delta.content:
            message.content = delta.content
        if delta.calls:
            message.tool_calls = [call_delta(piece) for piece in delta.calls]
        choices = []
        if delta.content or delta.reasoning or delta.calls or delta.scores:
            choices.append(ChatChunkChoice(index=delta.index, delta=message, logprobs=self._scores(delta.scores)))
        if delta.finish_reason:
            choices.append(ChatChunkChoice(index=delta.index, delta=ChatMessage(), finish_reason=delta.finish_reason))
        return choices

    def add(self, delta: Delta) -> None:
        self._parts[delta.index].append(delta)

    def whole(self) -> list[Any]:
        return [self._choice(index, deltas) for index, deltas in enumerate(self._parts)]

    def _choice(self, index: int, deltas: list[Delta]) -> ChatChoice:
        content = reasoning = ""
        for delta in deltas:
            if delta.closes:
                reasoning, content = reasoning + content, ""
            reasoning, content = reasoning + delta.reasoning, content + delta.content
        calls = join_calls([piece for d in deltas for piece in d.calls])
        message = ChatMessage(role="assistant", content=content if content or not calls else None)
        if reasoning:
            message.reasoning_content = reasoning
        if calls:
            message.tool_calls = calls
        scores = [s for d in deltas for s in d.scores]
        logprobs = self._scores(scores) if scores or not self._logprobs else ChatLogprobs(content=[])
        return ChatChoice(index=index, message=message, logprobs=logprobs, finish_reason=deltas[-1].finish_reason)

    def _scores(self, scores: list[ScoredToken]) -> ChatLogprobs | None:
        if not scores or not self._logprobs:
            return None
        return ChatLogprobs(content=[self._score(s) for s in scores])

    def _score(self, score: ScoredToken) -> TokenLogprob:
        text, raw = self._spell(score.token)
        tops = []
        for token, logprob in score.top:
            top_text, top_raw = self._spell(token)
            tops.append(Logprob(token=top_text, logprob=finite(logprob), bytes=top_raw))
        return TokenLogprob(token=text, logprob=finite(score.logprob), bytes=raw, top_logprobs=tops)

    def _spell(self, token: int) -> tuple[str, list[int]]:
        return self._tokenizer.token_text(token), list(self._tokenizer.token_bytes(token))


def finite(logprob: float) -> float:
    """JSON has no infinity: a probability of 0 is written as OpenAI does."""
    return max(logprob, -9999.0)


def call_delta(piece: CallPiece) -> CallDelta:
    function = FunctionDelta(name=piece.name or UNSET, arguments=piece.arguments)
    if not piece.id:
        return CallDelta(index=piece.index, function=function)
    return CallDelta(index=piece.index, id=piece.id, type="function", function=function)


def join_calls(pieces: list[CallPiece]) -> list[CallDelta]:
    """Whole calls from their pieces."""
    calls: list[CallDelta] = []
    for piece in pieces:
        if piece.id:
            function = FunctionDelta(name=piece.name, arguments=piece.arguments)
            calls.append(CallDelta(id=piece.id, type="function", function=function))
        else:
            calls[-1].function.arguments += piece.arguments
    return calls
