"""The Sanic application: HTTP only, one process, one event loop. The engine runs in a process of its own."""

from __future__ import annotations

import importlib
import itertools
import logging
import os
import sys
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

from sanic import Request, Sanic
from sanic.config import Config
from sanic.response import HTTPResponse

from ferrum.server.connections import note_received
from ferrum.server.guard import ApiErrorHandler, add_headers, make_guard
from ferrum.server.log import CLIENT_GONE, RequestRecord
from ferrum.server.routes import chat, completions, status, unserved
from ferrum.server.state import ServerState

Handler: TypeAlias = Callable[..., Coroutine[Any, Any, HTTPResponse | None]]


def later(module: str, name: str, room: str = "dialects") -> Handler:
    """A handler of a dialect, or of another ``room``, that is imported, off the loop, when it is first wanted: the start is
    shorter without."""
    path = f"ferrum.server.{room}.{module}"

    async def handler(request: Request, **parts: str) -> HTTPResponse | None:
        if path not in sys.modules:
            await request.app.ctx.state.in_thread(importlib.import_module, path)
        found: Handler = getattr(importlib.import_module(path), name)
        return await found(request, **parts)

    handler.__name__ = f"{module}_{name}"
    return handler


ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("POST", "/v1/chat/completions", chat.chat_completions),
    ("POST", "/v1/completions", completions.completions),
    ("POST", "/v1/responses", later("responses", "responses")),
    ("GET", "/v1/responses/<name:str>", later("responses", "one_response")),
    ("DELETE", "/v1/responses/<name:str>", later("responses", "drop_response")),
    ("POST", "/v1/responses/<name:str>/cancel", later("responses", "cancel_response")),
    ("POST", "/v1/messages", later("messages", "messages")),
    ("POST", "/v1/messages/count_tokens", later("messages", "count_tokens")),
    ("POST", "/v1/embeddings", later("embeddings", "embeddings", "routes")),
    ("POST", "/v1/files", later("files", "upload")),
    ("GET", "/v1/files", later("files", "list_files")),
    ("GET", "/v1/files/<name:str>", later("files", "one_file")),
    ("GET", "/v1/files/<name:str>/content", later("files", "content")),
    ("DELETE", "/v1/files/<name:str>", later("files", "drop")),
    ("POST", "/v1/batches", later("batches", "create")),
    ("GET", "/v1/batches", later("batches", "list_batches")),
    ("GET", "/v1/batches/<name:str>", later("batches", "one_batch")),
    ("POST", "/v1/batches/<name:str>/cancel", later("batches", "cancel")),
    ("POST", "/api/chat", later("ollama", "chat")),
    ("POST", "/api/generate", later("ollama", "generate")),
    ("POST", "/api/embed", later("ollama_embed", "embed")),
    ("POST", "/api/embeddings", later("ollama_embed", "embed_one")),
    ("POST", "/api/show", later("ollama_models", "show")),
    ("GET", "/api/tags", later("ollama_models", "tags")),
    ("GET", "/api/ps", later("ollama_models", "running")),
    ("GET", "/api/version", later("ollama_models", "version")),
    ("POST", "/infill", later("infill", "infill")),
    ("POST", "/tokenize", later("tokens", "tokenize", "routes")),
    ("POST", "/detokenize", later("tokens", "detokenize", "routes")),
    ("POST", "/apply-template", later("tokens", "apply_template", "routes")),
    ("GET", "/v1/models", status.models),
    ("GET", "/v1/models/<name:path>", status.one_model),
    ("GET", "/", status.greeting),
    ("GET", "/health", status.health),
    ("GET", "/ready", status.ready),
    ("GET", "/metrics", status.show_metrics),
    ("GET", "/openapi.json", later("openapi", "openapi", "routes")),
    *(("POST", path, unserved.unserved(path)) for path in unserved.WANTED),
)
REQUEST_SECONDS = 60  # for the headers and each piece of the body to arrive
KEEP_ALIVE_SECONDS = 75
ANSWER_SECONDS = 24 * 3600  # Sanic's 60 s would cut long answers; a client that reads nothing is dropped by ``sse``
MAX_HEADER_BYTES = 16 * 1024

_numbers = itertools.count(1)


class App(Sanic[Any, Any]):
    """Sanic, with a line in the log after each request."""

    async def handle_request(self, request: Request) -> None:
        gone = True
        try:
            await super().handle_request(request)
            gone = False
        finally:
            record: RequestRecord | None = getattr(request.ctx, "record", None)
            if record is not None:
                response = request.stream.response if request.stream is not None else None
                record.route = f"/{request.route.path}" if request.route is not None else "-"
                record.status = CLIENT_GONE if gone or response is None else response.status
                self.ctx.state.log.request(record)
                if self.ctx.state.traces is not None:
                    self.ctx.state.traces.request(record, request)


def create_app(state: ServerState) -> App:
    """The application over ``state``. Each has a name of its own, because Sanic keeps a table of names."""
    config: Config = Config(env_prefix="")
    config.update(
        ACCESS_LOG=False,
        AUTO_EXTEND=False,
        FALLBACK_ERROR_FORMAT="json",
        GRACEFUL_SHUTDOWN_TIMEOUT=1.0,
        GRACEFUL_TCP_CLOSE_TIMEOUT=1.0,
        KEEP_ALIVE_TIMEOUT=KEEP_ALIVE_SECONDS,
        MOTD=False,
        REQUEST_MAX_HEADER_SIZE=MAX_HEADER_BYTES,
        REQUEST_MAX_SIZE=state.options.max_body_bytes,
        REQUEST_TIMEOUT=REQUEST_SECONDS,
        RESPONSE_TIMEOUT=ANSWER_SECONDS,
        TOUCHUP=False,  # it rewrites Sanic's own methods from their source, once per process, and gains nothing here
    )
    app = App(
        f"ferrum-{os.getpid()}-{next(_numbers)}", config=config, error_handler=ApiErrorHandler(state.log), configure_logging=False
    )
    for name in ("sanic.root", "sanic.error", "sanic.access", "sanic.server"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # they would write URLs and addresses
    app.ctx.state = state
    app.signal("http.routing.before")(make_guard(state.options, state.meters))
    app.signal("http.handler.before")(note_received)
    app.register_middleware(add_headers, "response")
    for method, path, handler in ROUTES:
        methods = ["GET", "HEAD"] if method == "GET" else [method]
        # Without the format, Sanic parses each handler's source to guess it.
        app.add_route(handler, path, methods=methods, name=handler.__name__, error_format="json")
        if path.startswith("/v1/"):  # for a base URL that was given without it
            app.add_route(handler, path[3:], methods=methods, name=f"{handler.__name__}_short", error_format="json")
    return app
