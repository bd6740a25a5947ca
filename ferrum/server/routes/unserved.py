"""Routes of other kinds of models: what is asked for is understood, and that this pack's model cannot do it is said."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from sanic import Request
from sanic.response import HTTPResponse

from ferrum.server.errors import ApiError
from ferrum.server.state import state_of

WANTED = {
    "/v1/rerank": "scores of documents",
    "/v1/reranking": "scores of documents",
    "/v2/rerank": "scores of documents",
    "/embedding": "embeddings",
    "/pooling": "embeddings",
    "/classify": "classes",
    "/v1/moderations": "judgements",
    "/v1/score": "scores of texts",
    "/v1/audio/transcriptions": "transcripts",
    "/v1/audio/translations": "translations of speech",
    "/v1/audio/speech": "speech",
    "/v1/images/generations": "images",
    "/v1/images/edits": "images",
}


def unserved(path: str) -> Callable[[Request], Coroutine[Any, Any, HTTPResponse]]:
    """A handler that refuses by name."""

    async def refuse(request: Request) -> HTTPResponse:
        embeds = state_of(request).backend.info.embedding_width > 0
        does = "this model makes embeddings, at /v1/embeddings" if embeds else "this model generates text from text"
        raise ApiError(400, f"{does}; it makes no {WANTED[path]} here", param="model", code="unsupported_by_model")

    refuse.__name__ = "unserved_" + path.strip("/").replace("/", "_")
    return refuse
