"""``GET /openapi.json``: the document that clients and proxies read, made from the structs that read the requests."""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec
from sanic import Request
from sanic.response import HTTPResponse

from ferrum import __version__
from ferrum.server.answers import Completion, ModelList
from ferrum.server.protocol import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from ferrum.server.routes.common import answer

_BODIES: dict[str, Any] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
    "/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
}
_READS: dict[str, Any] = {
    "/v1/models": ModelList,
    "/v1/models/{id}": None,
    "/health": None,
    "/ready": None,
    "/metrics": None,
    "/openapi.json": None,
}


async def openapi(request: Request) -> HTTPResponse:
    return answer(document())


@cache
def document() -> dict[str, Any]:
    """OpenAPI 3.1: its schemas are JSON Schema, which is what msgspec makes."""
    types = [*_BODIES.values(), Completion, ModelList]
    schemas, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    by_type = dict(zip(types, schemas, strict=True))
    paths: dict[str, Any] = {}
    for path, kind in _BODIES.items():
        result = by_type[Completion] if path.startswith("/v1") else {"type": "object"}
        paths[path] = {"post": {"requestBody": {"required": True, **_content(by_type[kind])}, "responses": _responses(result)}}
    for path, kind in _READS.items():
        operation: dict[str, Any] = {"responses": _responses(by_type[kind] if kind else {})}
        if "{id}" in path:
            operation["parameters"] = [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}]
        paths[path] = {"get": operation}
    return {
        "openapi": "3.1.0",
        "info": {"title": "ferrum", "version": __version__},
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{"key": []}],
    }


def _content(schema: dict[str, Any]) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": schema}}}


def _responses(schema: dict[str, Any]) -> dict[str, Any]:
    return {"200": {"description": "the answer", **_content(schema)}, "default": {"description": "an error, in OpenAI's form"}}
