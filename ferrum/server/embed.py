"""One embedding request, whatever the dialect: its texts as tokens, the rows of the engine, what it counts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from sanic import Request as HttpRequest

from ferrum.errors import FerrumError
from ferrum.server.errors import ApiError, from_ferrum
from ferrum.server.meters import Meter
from ferrum.server.prepare import check_size
from ferrum.server.state import ServerState, state_of

MAX_INPUTS = 2048
Input = str | list[int]


@dataclass(frozen=True)
class Embedded:
    """The rows of a request's inputs, each as float32 in little-endian bytes, and how many tokens these had."""

    rows: list[bytes]
    tokens: int


@dataclass(frozen=True)
class Wish:
    """``inputs`` are texts, or token ids as they are; ``dimensions`` 0: the whole row. ``cut``: what is too long loses its end.

    ``field``: what the dialect calls the inputs.
    """

    inputs: Sequence[Input]
    dimensions: int = 0
    prompt_name: str | None = None
    cut: bool = False
    field: str = "input"


async def embedded(request: HttpRequest, wish: Wish) -> Embedded:
    """Raises ApiError, before anything runs if an input is refused."""
    state = state_of(request)
    if not state.backend.info.embedding_width:
        what = "this model generates text from text; it makes no embeddings"
        raise ApiError(400, what, param="model", code="unsupported_by_model")
    meter: Meter | None = getattr(request.ctx, "meter", None)
    with state.admitted(meter):
        try:
            prompts = [await tokens_of(state, one, wish) for one in wish.inputs]
            rows = await all_rows(state, prompts, wish.dimensions)
        except FerrumError as error:
            refused = from_ferrum(error, {"prompt": wish.field})
            if refused.status == 429:
                refused.retry_after = state.patience()
            raise refused from None
        count = sum(map(len, prompts))
        if meter is not None:
            meter.tokens.spend(count)
    return Embedded(rows, count)


async def tokens_of(state: ServerState, given: Input, wish: Wish) -> list[int]:
    """Raises ApiError and FerrumError, among them what the engine would say of a text that is too long."""
    limit = state.backend.info.max_model_len
    ids = given
    if isinstance(ids, str):
        text = state.prompts.before(ids, wish.prompt_name)
        check_size(len(text), state.max_chars, wish.field)
        ids = await state.off_loop(len(text), state.tokenizer.encode, text)
    if not ids:
        raise FerrumError("prompt-empty", "there is a text without tokens", "prompt", "leave it out")
    if len(ids) <= limit:
        return ids
    if wish.cut:
        ends = ids[-1:] if ids[-1] in state.tokenizer.special_ids else []
        return ids[: limit - len(ends)] + ends
    what = f"the text has {len(ids)} tokens; this model embeds up to {limit}"
    raise FerrumError("prompt-too-long", what, "prompt", "shorten it, or embed it in parts")


async def all_rows(state: ServerState, prompts: Sequence[Sequence[int]], dimensions: int) -> list[bytes]:
    """Some at a time, so that a request of many texts leaves room in the queue for others."""
    rows: list[bytes] = []
    size = state.backend.info.max_num_seqs
    for first in range(0, len(prompts), size):
        tasks = [asyncio.ensure_future(state.backend.embed(ids, dimensions)) for ids in prompts[first : first + size]]
        try:
            rows += await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
    return rows
