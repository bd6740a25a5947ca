"""Deltas as the answers of OpenAI's Responses API, whole and as its events."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Raw

from ferrum.server.choice import Delta, ScoredToken
from ferrum.server.dialects.blocks import Block, BlockChange, Closed, ContentBlocks, Grew, Opened
from ferrum.server.errors import ApiError
from ferrum.server.exchange import Counts, Exchange
from ferrum.server.routes.chat import token_logprob
from ferrum.server.sse import Event, Framing, ServerSentEvents
from ferrum.server.wire import encode

Keep = Callable[[bytes, list[dict[str, Any]]], None]
_PREFIXES = {"text": "msg", "reasoning": "rs", "call": "fc"}
_PART_TYPES = {"text": "output_text", "reasoning": "reasoning_text"}


class ResponseWriter:
    """``echo``: what the answer repeats of its request. ``keep``: takes the finished answer and its items. ``logprobs``: whether
    texts have the log-probabilities of their tokens."""

    framing: Framing = ServerSentEvents()

    def __init__(self, exchange: Exchange, echo: dict[str, Any], keep: Keep | None, *, logprobs: bool = False) -> None:
        self._exchange = exchange
        self._echo = echo
        self._keep = keep
        self._logprobs = logprobs
        self._blocks = ContentBlocks()
        self._sequence = 0

    def opening(self, counts: Counts) -> list[Event]:
        begun = self._response("in_progress", [], None)
        return [self._event(f"response.{kind}", response=begun) for kind in ("created", "in_progress")]

    def chunk(self, delta: Delta) -> list[Event]:
        return [event for step in self._blocks.feed(delta) for event in self._step(step)]

    def closing(self, counts: Counts) -> list[Event]:
        made = self.whole(counts)
        return [self._event(f"response.{made['status']}", response=made)]

    def failed(self, error: ApiError) -> list[Event]:
        told = {"code": error.code or "server_error", "message": error.message}
        made = self._response("failed", self._items("incomplete"), None) | {"error": told}
        return [self._event("error", **told, param=error.param), self._event("response.failed", response=made)]

    def add(self, delta: Delta) -> None:
        self._blocks.add(delta)

    def whole(self, counts: Counts) -> dict[str, Any]:
        status = _status(self._blocks.finish_reason)
        items = self._items("completed")
        if status == "incomplete" and items:
            items[-1]["status"] = status
        made = self._response(status, items, counts)
        if self._keep is not None:
            self._keep(encode(made), items)
        return made

    def _response(self, status: str, items: list[dict[str, Any]], counts: Counts | None) -> dict[str, Any]:
        exchange = self._exchange
        return {
            "id": exchange.id,
            "object": "response",
            "created_at": exchange.created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "model": exchange.state.model_name,
            "output": items,
            "usage": None if counts is None else _usage(counts),
            **self._echo,
        }

    def _items(self, status: str) -> list[dict[str, Any]]:
        return [self._item(block, status) for block in self._blocks.all]

    def _item(self, block: Block, status: str, *, empty: bool = False) -> dict[str, Any]:
        item: dict[str, Any] = {"id": self._item_id(block), "status": status}
        text = "" if empty else block.text
        if block.kind == "call":
            return {"type": "function_call", "call_id": block.call_id, "name": block.name, "arguments": text, **item}
        content = [] if empty else [self._part(block, text)]
        if block.kind == "reasoning":
            return {"type": "reasoning", "summary": [], "content": content, **item}
        return {"type": "message", "role": "assistant", "content": content, **item}

    def _item_id(self, block: Block) -> str:
        return f"{_PREFIXES[block.kind]}_{self._exchange.record.id}{block.index:04x}"

    def _step(self, step: BlockChange) -> list[Event]:
        block = step.block
        at: dict[str, Any] = {"item_id": self._item_id(block), "output_index": block.index}
        if block.kind != "call":
            at["content_index"] = 0
        stem = {"text": "output_text", "reasoning": "reasoning_text", "call": "function_call_arguments"}[block.kind]
        if isinstance(step, Grew):
            return [self._event(f"response.{stem}.delta", delta=step.text, **at, **self._scored(block, step.scores))]
        if isinstance(step, Opened):
            begun = self._item(block, "in_progress", empty=True)
            events = [self._event("response.output_item.added", output_index=block.index, item=begun)]
            if block.kind != "call":
                events.append(self._event("response.content_part.added", part=self._part(block, "", ()), **at))
            return events
        assert isinstance(step, Closed)
        return self._closed(step, stem, at)

    def _closed(self, step: Closed, stem: str, at: dict[str, Any]) -> list[Event]:
        block = step.block
        if block.kind == "call":
            events = [self._event(f"response.{stem}.done", arguments=block.text, name=block.name, **at)]
        else:
            events = [
                self._event(f"response.{stem}.done", text=block.text, **at, **self._scored(block, block.scores)),
                self._event("response.content_part.done", part=self._part(block, block.text), **at),
            ]
        done = self._item(block, _status(step.reason))
        return [*events, self._event("response.output_item.done", output_index=block.index, item=done)]

    def _part(self, block: Block, text: str, scores: Sequence[ScoredToken] | None = None) -> dict[str, Any]:
        extra: dict[str, Any] = {"annotations": []} if block.kind == "text" else {}
        told = self._scored(block, block.scores if scores is None else scores)
        return {"type": _PART_TYPES[block.kind], "text": text, **extra, **told}

    def _scored(self, block: Block, scores: Sequence[ScoredToken]) -> dict[str, Any]:
        """``logprobs`` of a text. Each token as JSON at once: as objects they would take several times the memory."""
        if block.kind != "text":
            return {}
        tokenizer = self._exchange.state.tokenizer
        return {"logprobs": [Raw(encode(token_logprob(tokenizer, s))) for s in scores] if self._logprobs else []}

    def _event(self, kind: str, **fields: Any) -> Event:
        event = Event({"type": kind, "sequence_number": self._sequence, **fields}, kind)
        self._sequence += 1
        return event


def _status(finish_reason: str) -> str:
    return "incomplete" if finish_reason == "length" else "completed"


def _usage(counts: Counts) -> dict[str, Any]:
    return {
        "input_tokens": counts.prompt,
        "input_tokens_details": {"cached_tokens": counts.cached},
        "output_tokens": counts.completion,
        "output_tokens_details": {"reasoning_tokens": counts.reasoning},
        "total_tokens": counts.prompt + counts.completion,
    }
