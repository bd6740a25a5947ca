"""What Ollama's clients ask about models: ``GET /api/tags``, ``/api/ps``, ``/api/version``, ``POST /api/show``."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from sanic import Request as HttpRequest
from sanic.response import HTTPResponse

from ferrum.server.dialects.ollama import LATEST, check_model
from ferrum.server.fields import Hint, Request
from ferrum.server.routes.common import answer, read
from ferrum.server.state import ServerState, state_of

API_VERSION = "0.12.0"  # the Ollama whose API this is; clients look whether it is new enough


class ShowRequest(Request, kw_only=True):
    model: Annotated[str, Meta(max_length=256)] | None = None
    name: Annotated[str, Meta(max_length=256)] | None = None  # as older clients call it
    verbose: Hint = None

    def check(self) -> None:
        """Nothing that the types do not say."""


_show = msgspec.json.Decoder(ShowRequest)


async def tags(request: HttpRequest) -> HTTPResponse:
    return answer({"models": [_model(state_of(request))]})


async def running(request: HttpRequest) -> HTTPResponse:
    state = state_of(request)
    info = state.backend.info
    loaded = {"size_vram": 0, "context_length": info.max_model_len, "expires_at": "9999-12-31T23:59:59Z"}
    return answer({"models": [_model(state) | loaded]})


async def version(request: HttpRequest) -> HTTPResponse:
    return answer({"version": API_VERSION})


async def show(request: HttpRequest) -> HTTPResponse:
    state, body = state_of(request), await read(request, _show)
    check_model(state, body.model or body.name)
    family = _details(state)["family"]
    generates = ["completion", *(["tools"] if state.tool_format else []), *(["thinking"] if state.text.reasoning_end else [])]
    return answer(
        {
            "modelfile": "",
            "parameters": "",
            "template": "",
            "details": _details(state),
            "model_info": {
                "general.architecture": family,
                "general.parameter_count": state.about.num_parameters,
                f"{family}.context_length": state.backend.info.max_model_len,
            },
            "capabilities": ["embedding"] if state.backend.info.embedding_width else generates,
            "modified_at": _modified(state),
        }
    )


def _model(state: ServerState) -> dict[str, Any]:
    name = state.model_name
    return {
        "name": name if ":" in name else name + LATEST,
        "model": name if ":" in name else name + LATEST,
        "modified_at": _modified(state),
        "size": state.backend.info.weight_bytes,
        "digest": state.fingerprint.removeprefix("fp_"),
        "details": _details(state),
    }


def _details(state: ServerState) -> dict[str, Any]:
    about = state.about
    return {
        "parent_model": "",
        "format": "fpk",
        "family": about.family,
        "families": [about.family],
        "parameter_size": _shown(about.num_parameters),
        "quantization_level": about.quant,
    }


def _shown(count: int) -> str:
    for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if count >= size:
            return f"{count / size:.1f}{unit}"
    return str(count)


def _modified(state: ServerState) -> str:
    return datetime.fromtimestamp(state.created, UTC).isoformat().replace("+00:00", "Z")
