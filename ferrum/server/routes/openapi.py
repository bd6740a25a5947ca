"""``GET /openapi.json``: the document that clients and proxies read, made from the structs that read the requests."""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec
from sanic import Request
from sanic.response import HTTPResponse

from ferrum.server.answers import Completion, ModelList
from ferrum.server.error_shapes import api_of
from ferrum.server.guard import OPEN_PATHS
from ferrum.server.protocol import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from ferrum.server.routes.common import answer
from ferrum.server.routes.unserved import WANTED
from ferrum.server.state import state_of
from ferrum.version import __version__


def _bodies() -> dict[str, Any]:
    """The struct of each route's requests. Dialects are imported here, since few need this page."""
    from ferrum.server.dialects.batches import BatchRequest
    from ferrum.server.dialects.infill import InfillRequest
    from ferrum.server.dialects.messages import CountRequest, MessagesRequest
    from ferrum.server.dialects.ollama import OllamaChat, OllamaGenerate
    from ferrum.server.dialects.ollama_embed import EmbedRequest, OneEmbedRequest
    from ferrum.server.dialects.ollama_models import ShowRequest
    from ferrum.server.dialects.responses import ResponsesRequest
    from ferrum.server.routes.embeddings import EmbeddingRequest

    return {
        "/v1/chat/completions": ChatRequest,
        "/v1/completions": CompletionRequest,
        "/v1/responses": ResponsesRequest,
        "/v1/messages": MessagesRequest,
        "/v1/messages/count_tokens": CountRequest,
        "/v1/embeddings": EmbeddingRequest,
        "/v1/batches": BatchRequest,
        "/api/chat": OllamaChat,
        "/api/generate": OllamaGenerate,
        "/api/embed": EmbedRequest,
        "/api/embeddings": OneEmbedRequest,
        "/api/show": ShowRequest,
        "/infill": InfillRequest,
        "/tokenize": TokenizeRequest,
        "/detokenize": DetokenizeRequest,
        "/apply-template": ChatRequest,
    }


_READS: dict[str, Any] = {
    "/v1/models": ModelList,
    "/v1/models/{id}": None,
    "/v1/responses/{id}": None,
    "/v1/files": None,
    "/v1/files/{id}": None,
    "/v1/files/{id}/content": None,
    "/v1/batches": None,
    "/v1/batches/{id}": None,
    "/api/tags": None,
    "/api/ps": None,
    "/api/version": None,
    "/": None,
    "/health": None,
    "/ready": None,
    "/metrics": None,
    "/openapi.json": None,
}


_COMPLETIONS = ("/v1/chat/completions", "/v1/completions")
_STREAMS = {"/api/chat": "application/x-ndjson", "/api/generate": "application/x-ndjson"}
_MESSAGE = {"type": "object", "required": ["message"], "properties": {"message": {"type": "string"}}}
_ERRORS: dict[str, dict[str, Any]] = {
    "OpenAI": {"type": "object", "required": ["error"], "properties": {"error": _MESSAGE}},
    "Anthropic": {"type": "object", "required": ["type", "error"], "properties": {"type": {"const": "error"}, "error": _MESSAGE}},
    "Ollama": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}},
}
_UPLOAD = {
    "type": "object",
    "required": ["purpose", "file"],
    "properties": {"purpose": {"enum": ["batch"]}, "file": {"type": "string", "contentMediaType": "application/octet-stream"}},
}
_TEXT_PAGES = {"/v1/files/{id}/content": "application/octet-stream", "/": "text/plain", "/metrics": "text/plain; version=0.0.4"}


async def openapi(request: Request) -> HTTPResponse:
    options = state_of(request).options
    made = document(with_key=bool(options.keys))
    return answer({**made, "servers": [{"url": options.root_path}]} if options.root_path else made)


@cache
def document(*, with_key: bool) -> dict[str, Any]:
    """OpenAPI 3.1: its schemas are JSON Schema, which is what msgspec makes. ``with_key``: requests must carry one."""
    bodies = _bodies()
    types = [*bodies.values(), Completion, ModelList]
    schemas, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    by_type = dict(zip(types, schemas, strict=True))
    paths: dict[str, Any] = {}
    for path, kind in bodies.items():
        contents = _json(by_type[Completion] if path in _COMPLETIONS else {"type": "object"})
        if "stream" in kind.__struct_fields__:
            contents |= {_STREAMS.get(path, "text/event-stream"): {"schema": {"description": _STREAM}}}
        paths[path] = {
            "post": {"requestBody": {"required": True, "content": _json(by_type[kind])}, "responses": _answers(path, contents)}
        }
    for path, kind in _READS.items():
        contents = {_TEXT_PAGES[path]: {"schema": {"type": "string"}}} if path in _TEXT_PAGES else _json(by_type.get(kind, {}))
        operation: dict[str, Any] = {"responses": _answers(path, contents)}
        if "{id}" in path:
            operation["parameters"] = [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}]
        if path in OPEN_PATHS:
            operation["security"] = []
        paths.setdefault(path, {})["get"] = operation
    for path in ("/v1/responses/{id}", "/v1/files/{id}"):
        paths[path]["delete"] = paths[path]["get"]
    for path in ("/v1/batches/{id}", "/v1/responses/{id}"):
        paths[f"{path}/cancel"] = {"post": paths[path]["get"]}
    paths["/v1/files"]["post"] = {
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _UPLOAD}}},
        "responses": _answers("/v1/files", _json({"type": "object"})),
    }
    for path in WANTED:
        paths[path] = {"post": {"responses": {"default": _answers(path, {})["default"]}}}
    made: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "ferrum", "version": __version__},
        "paths": paths,
        "components": {"schemas": components},
    }
    if with_key:
        made["components"]["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
        }
        made["security"] = [{"bearer": []}, {"header": []}]
    return made


_STREAM = "with stream: true, server-sent events whose data are pieces of the answer, as the API that the route is of has them"


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _answers(path: str, contents: dict[str, Any]) -> dict[str, Any]:
    return {
        "200": {"description": "the answer", "content": contents},
        "default": {"description": f"an error, in {api_of(path)}'s form", "content": _json(_ERRORS[api_of(path)])},
    }
