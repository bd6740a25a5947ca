"""What OpenAI's chat and text completions have in common: the object around the choices, and how a stream ends."""

from __future__ import annotations

from typing import Any

from ferrum.server.answers import Completion, Usage, make_usage
from ferrum.server.errors import ApiError
from ferrum.server.exchange import Counts, Exchange
from ferrum.server.sse import Event, Framing, ServerSentEvents

DONE = Event(b"[DONE]")


class Envelope:
    """``include_usage``: a last chunk without choices has the usage, and every other one says null."""

    framing: Framing = ServerSentEvents()

    def __init__(self, exchange: Exchange, *, include_usage: bool) -> None:
        self._exchange = exchange
        self._include_usage = include_usage

    def whole(self, kind: str, choices: list[Any], counts: Counts) -> Completion:
        made = self._completion(kind, choices)
        made.usage = usage_of(counts)
        return made

    def chunk(self, kind: str, choice: Any) -> Event:
        made = self._completion(kind, [choice])
        if self._include_usage:
            made.usage = None
        return Event(made)

    def closing(self, kind: str, counts: Counts) -> list[Event]:
        if not self._include_usage:
            return [DONE]
        return [Event(self.whole(kind, [], counts)), DONE]

    def failed(self, error: ApiError) -> list[Event]:
        return [Event(error.body(), "error")]

    def _completion(self, kind: str, choices: list[Any]) -> Completion:
        exchange = self._exchange
        return Completion(
            id=exchange.id,
            object=kind,
            created=exchange.created,
            model=exchange.state.model_name,
            system_fingerprint=exchange.state.fingerprint,
            choices=choices,
        )


def usage_of(counts: Counts) -> Usage:
    return make_usage(counts.prompt, counts.completion, counts.cached, counts.reasoning)
