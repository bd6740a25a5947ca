"""``GET /``, ``/health``, ``/ready``, ``/metrics`` and the list of models."""

from __future__ import annotations

import asyncio
import time
from urllib.parse import unquote

from sanic import Request
from sanic.response import HTTPResponse

from ferrum.engine.reports import EngineStats
from ferrum.errors import FerrumError
from ferrum.server import metrics
from ferrum.server.answers import Model, ModelList
from ferrum.server.errors import ApiError
from ferrum.server.routes.common import answer
from ferrum.server.state import ServerState, state_of
from ferrum.version import __version__

STATS_SECONDS = 0.5
STUCK_SECONDS = 300.0  # no step of a working engine takes this long


async def find_stats(state: ServerState) -> EngineStats | None:
    """The engine's figures; None when it is gone or stuck.

    It answers between two steps. While a long one runs, the last figures are given again.
    """
    try:
        async with asyncio.timeout(STATS_SECONDS):
            state.stats = await state.backend.stats()
            state.stats_time = time.monotonic()
    except TimeoutError:
        if time.monotonic() - state.stats_time > STUCK_SECONDS:
            return None
    except FerrumError:
        return None
    return state.stats


async def greeting(_: Request) -> HTTPResponse:
    """What a person or a client sees who looks whether anything is there; Ollama's asks before all else."""
    return HTTPResponse("ferrum is running\n", content_type="text/plain; charset=utf-8")


async def health(request: Request) -> HTTPResponse:
    """200 while the engine answers, else 503. ``queued`` counts sequences."""
    state = state_of(request)
    stats = await find_stats(state)
    status = state.status if stats is not None else "unhealthy"
    body: dict[str, object] = {"status": status, "version": __version__, "model": state.model_name}
    if stats is not None:
        body["engine"] = {"active": stats.active_prefill + stats.active_decode, "queued": stats.queue_depth}
        body["cache"] = {
            "prefix_cache": {
                "enabled": state.backend.info.prefix_cache,
                "entries": stats.prefix_cache_entries,
                "hits": stats.prefix_cache_hits,
                "misses": stats.prefix_cache_misses,
                "evictions": stats.prefix_cache_evictions,
                "saved_prefill_tokens": stats.prefix_cache_saved_tokens,
            }
        }
        body["admission"] = {
            "queue_depth": stats.queue_depth,
            "active_prefill": stats.active_prefill,
            "active_decode": stats.active_decode,
            "current_batch_size": stats.current_batch_size,
            "rejected_requests": stats.num_rejected + state.metrics.rejected,
        }
    return answer(body, 503 if status == "unhealthy" else 200)


async def ready(request: Request) -> HTTPResponse:
    """200 while new requests are taken."""
    state = state_of(request)
    if state.status != "healthy":
        raise ApiError(503, f"the server is {state.status}", code=state.status)
    return answer({"status": "ready"})


async def show_metrics(request: Request) -> HTTPResponse:
    state = state_of(request)
    stats = await find_stats(state)
    if stats is None:
        raise ApiError(503, "the engine is not available", code="engine_unavailable")
    page = metrics.render(state.metrics, stats, state.backend.info)
    return HTTPResponse(page, content_type="text/plain; version=0.0.4; charset=utf-8")


def _model(state: ServerState) -> Model:
    return Model(id=state.model_name, created=state.created, max_model_len=state.backend.info.max_model_len)


async def models(request: Request) -> HTTPResponse:
    return answer(ModelList(data=[_model(state_of(request))]))


async def one_model(request: Request, name: str) -> HTTPResponse:
    state = state_of(request)
    state.check_model(unquote(name))
    return answer(_model(state))
