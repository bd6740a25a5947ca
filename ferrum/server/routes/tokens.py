"""``POST /tokenize``, ``/detokenize`` and ``/apply-template``: what the model would be given."""

from __future__ import annotations

from typing import Any

import msgspec
from sanic import Request
from sanic.response import HTTPResponse

from ferrum.errors import FerrumError
from ferrum.server.errors import from_ferrum
from ferrum.server.prepare import chat_prompt, chat_tokens, check_size, template_options
from ferrum.server.protocol import ChatRequest, DetokenizeRequest, PromptEnd, TokenizeRequest
from ferrum.server.routes.common import answer, read
from ferrum.server.state import ServerState, state_of

_tokenize = msgspec.json.Decoder(TokenizeRequest)
_detokenize = msgspec.json.Decoder(DetokenizeRequest)
_chat = msgspec.json.Decoder(ChatRequest)


async def tokenize(request: Request) -> HTTPResponse:
    state, body = state_of(request), await read(request, _tokenize)
    state.check_model(body.model)
    if body.messages is not None:
        options = template_options(state, body.chat_template_kwargs.enable_thinking if body.chat_template_kwargs else None)
        ends: PromptEnd = "open" if body.add_generation_prompt is False else "begun"
        _, tokens = await chat_tokens(state, body.messages, body.tools, options, len(request.body), ends=ends)
    else:
        tokens = await _text_tokens(state, body)

    def told() -> HTTPResponse:
        made: dict[str, Any] = {"tokens": tokens, "count": len(tokens), "max_model_len": state.backend.info.max_model_len}
        if body.return_token_strs:
            made["token_strs"] = [state.tokenizer.token_text(token) for token in tokens]
        if body.with_pieces:
            made["tokens"] = [{"id": token, "piece": _piece(state, token)} for token in tokens]
        return answer(made)

    return await state.off_loop(len(tokens), told)


async def _text_tokens(state: ServerState, body: TokenizeRequest) -> list[int]:
    where, special = ("prompt", body.add_special_tokens is not False) if body.content is None else ("content", body.add_special)
    text = (body.prompt if body.content is None else body.content) or ""
    check_size(len(text), state.max_chars, where)
    try:
        return await state.off_loop(len(text), state.tokenizer.encode, text, special=bool(special))
    except FerrumError as error:
        raise from_ferrum(error) from None


def _piece(state: ServerState, token: int) -> str | list[int]:
    """A token's text, or its bytes when they are a part of a character."""
    raw = state.tokenizer.token_bytes(token)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return list(raw)


async def apply_template(request: Request) -> HTTPResponse:
    """The prompt that a chat with these fields would have."""
    state, body = state_of(request), await read(request, _chat)
    state.check_model(body.model)
    prompt, _ = await chat_prompt(state, body, len(request.body))
    return answer({"prompt": prompt})


async def detokenize(request: Request) -> HTTPResponse:
    state, body = state_of(request), await read(request, _detokenize)
    state.check_model(body.model)
    try:
        skip = bool(body.skip_special_tokens)
        text = await state.off_loop(len(body.tokens), state.tokenizer.decode, body.tokens, skip_special=skip)
    except FerrumError as error:
        raise from_ferrum(error) from None
    return answer({"prompt": text, "content": text})
