"""Deltas as Ollama's objects: one a line, the last with the counts and times (nanoseconds)."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

from ferrum.server.choice import Delta
from ferrum.server.dialects.blocks import Block, BlockChange, Closed, ContentBlocks, Grew
from ferrum.server.dialects.common import parsed_arguments
from ferrum.server.error_shapes import ollama
from ferrum.server.errors import ApiError
from ferrum.server.exchange import Counts, Exchange
from ferrum.server.sse import Event, Framing, JsonLines

_NANOSECONDS = 1e9


class OllamaWriter:
    """``chat``: texts are in a message, else in ``response``."""

    framing: Framing = JsonLines()

    def __init__(self, exchange: Exchange, *, chat: bool) -> None:
        self._exchange = exchange
        self._chat = chat
        self._blocks = ContentBlocks()

    def opening(self, counts: Counts) -> list[Event]:
        return []

    def chunk(self, delta: Delta) -> list[Event]:
        told = [self._step(step) for step in self._blocks.feed(delta)]
        return [Event(answered(self._exchange, fields) | {"done": False}) for fields in told if fields]

    def closing(self, counts: Counts) -> list[Event]:
        return [Event(answered(self._exchange, self._fields("")) | self._end(counts))]

    def failed(self, error: ApiError) -> list[Event]:
        return [Event(ollama(error))]

    def add(self, delta: Delta) -> None:
        self._blocks.add(delta)

    def whole(self, counts: Counts) -> dict[str, Any]:
        texts = {kind: "".join(b.text for b in self._blocks.all if b.kind == kind) for kind in ("text", "reasoning")}
        calls = [_call(b) for b in self._blocks.all if b.kind == "call"]
        fields = self._fields(texts["text"], texts["reasoning"], calls)
        return answered(self._exchange, fields) | self._end(counts)

    def _step(self, step: BlockChange) -> dict[str, Any]:
        if isinstance(step, Closed) and step.block.kind == "call":
            return self._fields("", calls=[_call(step.block)])
        if not isinstance(step, Grew) or step.block.kind == "call":
            return {}
        return self._fields(step.text) if step.block.kind == "text" else self._fields("", step.text)

    def _fields(self, text: str, thinking: str = "", calls: list[dict[str, Any]] | None = None) -> dict[str, Any]:
        extra: dict[str, Any] = {"thinking": thinking} if thinking else {}
        if calls:
            extra["tool_calls"] = calls
        if self._chat:
            return {"message": {"role": "assistant", "content": text, **extra}}
        return {"response": text, **extra}

    def _end(self, counts: Counts) -> dict[str, Any]:
        record = self._exchange.record
        total = time.monotonic() - record.started
        first = (record.work.first_token_seconds if record.work is not None else None) or 0.0
        return {
            "done": True,
            "done_reason": "length" if self._blocks.finish_reason == "length" else "stop",
            "total_duration": int(total * _NANOSECONDS),
            "load_duration": 0,
            "prompt_eval_count": counts.prompt,
            "prompt_eval_duration": int(first * _NANOSECONDS),
            "eval_count": counts.completion,
            "eval_duration": int(max(0.0, total - first) * _NANOSECONDS),
        }


def _call(block: Block) -> dict[str, Any]:
    return {"id": block.call_id, "function": {"name": block.name, "arguments": parsed_arguments(block.text)}}


def answered(exchange: Exchange, fields: dict[str, Any]) -> dict[str, Any]:
    """``fields`` under the name of the model and the time."""
    now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    return {"model": exchange.state.model_name, "created_at": now, **fields}
