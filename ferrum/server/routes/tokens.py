"""``POST /tokenize`` and ``POST /detokenize``."""

from __future__ import annotations

import msgspec
from sanic import Request
from sanic.response import HTTPResponse

from ferrum.errors import FerrumError
from ferrum.server.errors import from_ferrum
from ferrum.server.prepare import chat_tokens, check_size, template_options
from ferrum.server.protocol import DetokenizeRequest, TokenizeRequest
from ferrum.server.routes.common import answer, read
from ferrum.server.state import state_of

_tokenize = msgspec.json.Decoder(TokenizeRequest)
_detokenize = msgspec.json.Decoder(DetokenizeRequest)


async def tokenize(request: Request) -> HTTPResponse:
    state, body = state_of(request), await read(request, _tokenize)
    state.check_model(body.model)
    if body.prompt is None:
        options = template_options(state, body.chat_template_kwargs.enable_thinking if body.chat_template_kwargs else None)
        generate = body.add_generation_prompt is not False
        size = len(request.body)
        _, tokens = await chat_tokens(state, body.messages or [], body.tools, options, size, add_generation_prompt=generate)
    else:
        size = len(body.prompt)
        check_size(size, state.max_chars, "prompt")
        try:
            tokens = await state.off_loop(size, state.tokenizer.encode, body.prompt, special=body.add_special_tokens is not False)
        except FerrumError as error:
            raise from_ferrum(error) from None
    return answer({"tokens": tokens, "count": len(tokens), "max_model_len": state.backend.info.max_model_len})


async def detokenize(request: Request) -> HTTPResponse:
    state, body = state_of(request), await read(request, _detokenize)
    state.check_model(body.model)
    try:
        skip = bool(body.skip_special_tokens)
        text = await state.off_loop(len(body.tokens), state.tokenizer.decode, body.tokens, skip_special=skip)
    except FerrumError as error:
        raise from_ferrum(error) from None
    return answer({"prompt": text})
