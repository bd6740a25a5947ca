"""Ollama's API: ``POST /api/chat`` and ``/api/generate``, which stream JSON lines unless told not to."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from sanic import Request as HttpRequest
from sanic.response import HTTPResponse

from ferrum.errors import FerrumError
from ferrum.server.budget import cap_tokens
from ferrum.server.choice import TextOptions
from ferrum.server.dialects.common import chat_request
from ferrum.server.dialects.ollama_answer import OllamaWriter, answered
from ferrum.server.errors import from_ferrum
from ferrum.server.exchange import Exchange
from ferrum.server.fields import Hint, Json, Request, only
from ferrum.server.prepare import Prepared, check_size, prepare_chat, sampling_params
from ferrum.server.protocol import MAX_MESSAGES, MAX_TOOLS, ChatRequest, Tool
from ferrum.server.routes.common import answer, read
from ferrum.server.state import ServerState
from ferrum.server.structured import grammar_of
from ferrum.server.wire import BadRequest

PARAMS: Mapping[str, str] = {
    "max_tokens": "options.num_predict",
    "repetition_penalty": "options.repeat_penalty",
    "chat_template_kwargs": "think",
    "reasoning_effort": "think",
    "response_format": "format",
    **{n: f"options.{n}" for n in ("temperature", "top_k", "top_p", "min_p", "seed", "stop")},
}
LATEST = ":latest"  # what Ollama adds to names without a tag


class Options(Request, kw_only=True):
    num_predict: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    typical_p: Annotated[Json, only(1)] = None
    tfs_z: Annotated[Json, only(1)] = None
    mirostat: Annotated[Json, only(0)] = None
    repeat_last_n: Annotated[Json, only(64, -1)] = None
    # Of the machine, not of the answer; the context's length was decided when the pack was loaded.
    mirostat_tau: Hint = None
    mirostat_eta: Hint = None
    penalize_newline: Hint = None
    num_ctx: Hint = None
    num_keep: Hint = None
    num_batch: Hint = None
    num_gpu: Hint = None
    main_gpu: Hint = None
    num_thread: Hint = None
    numa: Hint = None
    low_vram: Hint = None
    f16_kv: Hint = None
    use_mmap: Hint = None
    use_mlock: Hint = None


class Call(Request, kw_only=True):
    class Function(Request, kw_only=True):
        name: str
        arguments: dict[str, Any] | None = None
        index: Hint = None
        description: Hint = None

    function: Function
    id: str | None = None
    type: Hint = None


class Message(Request, kw_only=True):
    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    tool_calls: list[Call] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None
    images: Annotated[Json, only([])] = None


class Asked(Request, kw_only=True):
    """What chats and generations share."""

    model: Annotated[str, Meta(max_length=256)] | None = None
    stream: bool | None = None
    options: Options | None = None
    think: bool | Literal["low", "medium", "high"] | None = None
    format: dict[str, Any] | Literal["", "json"] | None = None
    logprobs: Annotated[Json, only(False)] = None
    top_logprobs: Annotated[Json, only(0)] = None
    keep_alive: Hint = None
    truncate: Hint = None
    shift: Hint = None

    def check(self) -> None:
        """``chat_request`` looks at what the types do not say."""


class OllamaChat(Asked, kw_only=True):
    messages: Annotated[list[Message], Meta(max_length=MAX_MESSAGES)] | None = None
    tools: Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] | None = None


class OllamaGenerate(Asked, kw_only=True):
    prompt: str | None = None
    system: str | None = None
    raw: bool | None = None
    suffix: Annotated[Json, only("")] = None
    template: Annotated[Json, only("")] = None
    context: Annotated[Json, only([])] = None
    images: Annotated[Json, only([])] = None

    def check(self) -> None:
        """``raw`` takes no template, and with it goes all that only a template can say."""
        for name, given in (("system", bool(self.system)), ("think", self.think is not None)):
            if self.raw and given:
                message = f"{name} is not supported with raw, which takes the prompt as it is"
                raise BadRequest(message, name, "unsupported_parameter")


_chat = msgspec.json.Decoder(OllamaChat)
_generate = msgspec.json.Decoder(OllamaGenerate)


async def chat(request: HttpRequest) -> HTTPResponse | None:
    body = await read(request, _chat)
    exchange = begin(request, body)
    if not body.messages:
        return loaded(exchange, {"message": {"role": "assistant", "content": ""}})
    tools = [{"type": "function", "function": _function(tool)} for tool in body.tools or ()] or None
    asked = translated(exchange.state, body, messages_of(body.messages), tools)
    size = len(request.body)
    return await exchange.run(lambda: prepare_chat(exchange.state, asked, size), lambda _: OllamaWriter(exchange, chat=True))


async def generate(request: HttpRequest) -> HTTPResponse | None:
    body = await read(request, _generate)
    exchange = begin(request, body)
    prompt = body.prompt or ""
    if not prompt:
        return loaded(exchange, {"response": ""})
    system = [{"role": "system", "content": body.system}] if body.system else []
    asked = translated(exchange.state, body, [*system, {"role": "user", "content": prompt}], None)
    size = len(request.body)

    async def prepare() -> Prepared:
        if body.raw:
            return await prepare_raw(exchange.state, asked, prompt)
        return await prepare_chat(exchange.state, asked, size)

    return await exchange.run(prepare, lambda _: OllamaWriter(exchange, chat=False), continues=bool(body.raw))


def loaded(exchange: Exchange, fields: dict[str, Any]) -> HTTPResponse:
    """The answer to a request without a prompt, which asks for the model to be loaded."""
    return answer(answered(exchange, fields) | {"done": True, "done_reason": "load"})


def _function(tool: Tool) -> dict[str, Any]:
    function = tool.function
    fields = {"name": function.name, "description": function.description, "parameters": function.parameters}
    return {k: v for k, v in fields.items() if v is not None}


def begin(request: HttpRequest, body: Asked) -> Exchange:
    exchange = Exchange(request, "", stream=body.stream is not False, params=PARAMS)
    check_model(exchange.state, body.model)
    return exchange


def check_model(state: ServerState, name: str | None) -> None:
    """As ``ServerState.check_model``, where a name without a tag is the same as with ``LATEST``."""
    same = (name or "").removesuffix(LATEST) == state.model_name.removesuffix(LATEST)
    state.check_model(state.model_name if same else name)


async def prepare_raw(state: ServerState, asked: ChatRequest, prompt: str) -> Prepared:
    """A prompt that no template is put around. Raises ApiError."""
    check_size(len(prompt), state.max_chars, "prompt")
    try:
        ids = await state.off_loop(len(prompt), state.tokenizer.encode, prompt)
    except FerrumError as error:
        raise from_ferrum(error) from None
    limit = cap_tokens(asked.max_tokens, state.backend.info.max_model_len - len(ids), sequences=1, logprobs=None)
    grammar = await grammar_of(state, asked, "")
    return Prepared([ids], sampling_params(state, asked, limit, None, grammar), TextOptions(stops=asked.stops), {})


def translated(state: ServerState, body: Asked, messages: list[dict[str, Any]], tools: list[Any] | None) -> ChatRequest:
    """As a chat request. Raises ApiError."""
    options = body.options or Options()
    limit = options.num_predict
    return chat_request(
        {
            "messages": messages,
            "tools": tools,
            "max_tokens": None if limit is not None and limit < 0 else limit,
            "repetition_penalty": options.repeat_penalty,
            **{n: getattr(options, n) for n in ("temperature", "top_k", "top_p", "min_p", "seed", "stop")},
            **{n: getattr(options, n) for n in ("presence_penalty", "frequency_penalty")},
            **_thinking(state, body.think),
            "response_format": _response_format(body.format),
        },
        PARAMS,
    )


def _response_format(given: dict[str, Any] | str | None) -> dict[str, Any] | None:
    if not given:
        return None
    return {"type": "json_object"} if given == "json" else {"type": "json_schema", "json_schema": {"schema": given}}


def _thinking(state: ServerState, think: bool | str | None) -> dict[str, Any]:
    takes = state.template.takes if state.template is not None else (lambda _: False)
    if think is None:
        return {}
    if isinstance(think, str) and takes("reasoning_effort"):
        return {"reasoning_effort": think}
    if think and not takes("enable_thinking") and state.text.reasoning_end:
        return {}  # it thinks unasked
    return {"chat_template_kwargs": {"enable_thinking": bool(think)}}


def messages_of(messages: list[Message]) -> list[dict[str, Any]]:
    """As a chat has them: calls get ids, and results of tools the ids of the calls that they answer."""
    made: list[dict[str, Any]] = []
    waiting: dict[str, Call] = {}  # calls that have no result yet
    count = 0
    for message in messages:
        one: dict[str, Any] = {"role": message.role, "content": message.content or ""}
        if message.role == "tool":
            one["tool_call_id"] = _answered(message, waiting)
            waiting.pop(one["tool_call_id"], None)
        elif message.role == "assistant":
            if message.thinking:
                one["reasoning_content"] = message.thinking
            calls = []
            for call in message.tool_calls or ():
                name = f"call{count:05d}"  # nine characters, as some templates want them
                waiting[name] = call
                arguments = msgspec.json.encode(call.function.arguments or {}).decode()
                function = {"name": call.function.name, "arguments": arguments}
                calls.append({"id": name, "type": "function", "function": function})
                count += 1
            one |= {"tool_calls": calls} if calls else {}
        made.append(one)
    return made


def _answered(message: Message, waiting: Mapping[str, Call]) -> str:
    """Which of the ``waiting`` calls a tool's message answers: by the call's id, else its function, else the first."""
    by_id = (i for i, call in waiting.items() if message.tool_call_id and call.id == message.tool_call_id)
    by_name = (i for i, call in waiting.items() if call.function.name == message.tool_name)
    return next(chain(by_id, by_name, waiting), "call00000")
