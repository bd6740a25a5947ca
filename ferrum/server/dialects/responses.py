"""OpenAI's Responses API: ``POST /v1/responses``, and ``GET`` and ``DELETE`` of an answer that was kept.

Answers are kept in memory unless ``store`` is false; ``previous_response_id`` and item references find them there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta
from sanic import Request as HttpRequest
from sanic.response import HTTPResponse

from ferrum.pack.step import MAX_LOGPROBS
from ferrum.server.dialects.common import chat_request, joined
from ferrum.server.dialects.kept import Kept
from ferrum.server.dialects.responses_answer import ResponseWriter
from ferrum.server.errors import ApiError, invalid
from ferrum.server.exchange import Exchange
from ferrum.server.fields import Hint, Json, Request, only
from ferrum.server.guard import owner_of
from ferrum.server.parts import Unread
from ferrum.server.prepare import prepare_chat
from ferrum.server.protocol import MAX_MESSAGES, MAX_TOOLS, Short, TemplateOptions
from ferrum.server.routes.common import answer, read
from ferrum.server.state import ServerState, state_of
from ferrum.server.wire import encode, explain

PARAMS: Mapping[str, str] = {
    "messages": "input",
    "max_completion_tokens": "max_output_tokens",
    "max_tokens": "max_output_tokens",
    "reasoning_effort": "reasoning",
    "response_format": "text.format",
}


class TextPart(Request, kw_only=True, tag_field="type", tag="input_text"):
    text: str


class OutputText(Request, kw_only=True, tag_field="type", tag="output_text"):
    text: str
    annotations: Hint = None
    logprobs: Hint = None


class Refusal(Request, kw_only=True, tag_field="type", tag="refusal"):
    refusal: str

    @property
    def text(self) -> str:
        return self.refusal


class ReasoningText(Request, kw_only=True, tag_field="type", tag="reasoning_text"):
    text: str


class SummaryText(Request, kw_only=True, tag_field="type", tag="summary_text"):
    text: str


class ImagePart(Unread, kw_only=True, tag_field="type", tag="input_image"):
    image_url: Json = None


class FilePart(Unread, kw_only=True, tag_field="type", tag="input_file"):
    file_data: Json = None


Parts: TypeAlias = str | list[TextPart | OutputText | Refusal | ImagePart | FilePart]


class MessageItem(Request, kw_only=True, tag_field="type", tag="message"):
    role: Literal["user", "assistant", "system", "developer"]
    content: Parts
    id: Hint = None
    status: Hint = None
    phase: Hint = None


class CallItem(Request, kw_only=True, tag_field="type", tag="function_call"):
    call_id: Short
    name: str
    arguments: str
    id: Hint = None
    status: Hint = None
    namespace: Hint = None


class CallOutputItem(Request, kw_only=True, tag_field="type", tag="function_call_output"):
    call_id: Short
    output: Parts
    id: Hint = None
    status: Hint = None


class ReasoningItem(Request, kw_only=True, tag_field="type", tag="reasoning"):
    """``encrypted_content`` is never given out here."""

    id: Hint = None
    summary: list[SummaryText] | None = None
    content: list[ReasoningText] | None = None
    encrypted_content: Hint = None
    status: Hint = None


class ReferenceItem(Request, kw_only=True, tag_field="type", tag="item_reference"):
    id: Short


Item: TypeAlias = MessageItem | CallItem | CallOutputItem | ReasoningItem | ReferenceItem


class FunctionTool(Request, kw_only=True):
    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    defer_loading: Annotated[Json, only(False)] = None


class Reasoning(Request, kw_only=True):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    summary: Hint = None
    generate_summary: Hint = None


class TextFormat(Request, kw_only=True):
    """``format`` as in chats' ``response_format``."""

    format: Any = None
    verbosity: Hint = None


Included: TypeAlias = Literal["message.output_text.logprobs", "reasoning.encrypted_content"]


class ResponsesRequest(Request, kw_only=True):
    input: str | Annotated[list[msgspec.Raw], Meta(min_length=1, max_length=MAX_MESSAGES)]
    model: Annotated[str, Meta(max_length=256)] | None = None
    instructions: str | None = None
    previous_response_id: Short | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stream: bool | None = None
    store: bool | None = None
    tools: Annotated[list[FunctionTool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    chat_template_kwargs: TemplateOptions | None = None
    text: TextFormat | None = None
    metadata: Annotated[dict[Annotated[str, Meta(max_length=64)], Short], Meta(max_length=16)] | None = None
    conversation: None = None
    prompt: None = None
    background: Annotated[Json, only(False)] = None
    include: Annotated[list[Included], Meta(max_length=8)] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    truncation: Annotated[Json, only("disabled")] = None
    max_tool_calls: Hint = None  # counts the server's own tools, of which there are none
    stream_options: Hint = None
    service_tier: Hint = None
    user: Hint = None
    prompt_cache_key: Hint = None
    prompt_cache_retention: Hint = None
    safety_identifier: Hint = None
    client_metadata: Hint = None

    @property
    def wants_logprobs(self) -> bool:
        return bool(self.top_logprobs) or "message.output_text.logprobs" in (self.include or ())

    def check(self) -> None:
        """``chat_request`` looks at what the types do not say."""


_decoder = msgspec.json.Decoder(ResponsesRequest)


async def responses(request: HttpRequest) -> HTTPResponse | None:
    body = await read(request, _decoder)
    exchange = Exchange(request, "resp_", stream=bool(body.stream), params=PARAMS)
    state = exchange.state
    state.check_model(body.model)
    owner = owner_of(request)
    conversation = earlier_of(state, body, owner) + messages_of(state, body, owner)
    system = [{"role": "system", "content": body.instructions}] if body.instructions else []
    chat = chat_request({**fields_of(body), "messages": [*system, *conversation]}, PARAMS)

    def keep(made: bytes, items: list[dict[str, Any]]) -> None:
        spoken = [*conversation, *chat_messages([kept_item(i) for i in items])]
        size = len(made) + len(request.body) + sum(len(str(m)) for m in conversation)
        state.kept.put(exchange.id, Kept(spoken, {str(i["id"]): i for i in items}, made, size, owner))

    size = len(request.body)
    return await exchange.run(
        lambda: prepare_chat(state, chat, size),
        lambda prepared: ResponseWriter(
            exchange,
            echoed(body, prepared.sampling),
            keep if body.store is not False else None,
            logprobs=body.wants_logprobs,
        ),
    )


async def one_response(request: HttpRequest, name: str) -> HTTPResponse:
    kept = state_of(request).kept.get(name, owner_of(request))
    if kept is None:
        raise not_kept(name, 404)
    return HTTPResponse(kept.answer, content_type="application/json")


async def drop_response(request: HttpRequest, name: str) -> HTTPResponse:
    kept = state_of(request).kept
    if kept.get(name, owner_of(request)) is None or not kept.drop(name):
        raise not_kept(name, 404)
    return answer({"id": name, "object": "response", "deleted": True})


async def cancel_response(request: HttpRequest, name: str) -> HTTPResponse:
    """Nothing runs in the background, so there is nothing to cancel."""
    if state_of(request).kept.get(name, owner_of(request)) is None:
        raise not_kept(name, 404)
    raise invalid("Cannot cancel a synchronous response.", "response_id")


def not_kept(name: str, status: int) -> ApiError:
    what = f"Response with id {name!r} not found. It was not stored, or others took its place"
    return ApiError(status, what, param="previous_response_id", code="previous_response_not_found")


# ---- their request as a chat request


def fields_of(body: ResponsesRequest) -> dict[str, Any]:
    """The fields of a chat request, without its messages."""
    choice = body.tool_choice
    if isinstance(choice, dict) and choice.get("type") == "function":
        choice = {"type": "function", "function": {"name": choice.get("name")}}
    text_format = body.text.format if body.text is not None else None
    if isinstance(text_format, dict) and text_format.get("type") == "json_schema":  # theirs is flat
        text_format = {"type": "json_schema", "json_schema": {k: v for k, v in text_format.items() if k != "type"}}
    return {
        "max_completion_tokens": body.max_output_tokens,
        "logprobs": body.wants_logprobs or None,
        "top_logprobs": body.top_logprobs if body.wants_logprobs else None,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "tools": [{"type": "function", "function": _function(t)} for t in body.tools or ()] or None,
        "tool_choice": choice,
        "parallel_tool_calls": body.parallel_tool_calls,
        "reasoning_effort": body.reasoning.effort if body.reasoning is not None else None,
        "chat_template_kwargs": msgspec.to_builtins(body.chat_template_kwargs),
        "response_format": text_format,
        "metadata": body.metadata,
    }


def _function(tool: FunctionTool) -> dict[str, Any]:
    fields = {"name": tool.name, "description": tool.description, "parameters": tool.parameters, "strict": tool.strict}
    return {k: v for k, v in fields.items() if v is not None}


def earlier_of(state: ServerState, body: ResponsesRequest, owner: str) -> list[dict[str, Any]]:
    """The conversation that ``previous_response_id`` continues. Raises ApiError."""
    if body.previous_response_id is None:
        return []
    kept = state.kept.get(body.previous_response_id, owner)
    if kept is None:
        raise not_kept(body.previous_response_id, 400)
    return kept.messages


def messages_of(state: ServerState, body: ResponsesRequest, owner: str) -> list[dict[str, Any]]:
    """``input`` as messages of a chat. Raises ApiError."""
    if isinstance(body.input, str):
        return [{"role": "user", "content": body.input}]
    return chat_messages([_item(state, value, i, owner) for i, value in enumerate(body.input)])


def _item(state: ServerState, raw: msgspec.Raw, index: int, owner: str) -> Item:
    try:
        # A message may leave its type out.
        item = _items.decode(raw) if _kinds.decode(raw).type else _message.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:  # what was skipped over was not looked at
        raise invalid(f"input[{index}]: {explain(str(error)).message}", "input") from None
    if not isinstance(item, ReferenceItem):
        return item
    found = state.kept.item(item.id, owner)
    if found is None:
        raise invalid(f"input[{index}]: the item {item.id!r} is not kept", "input", "item_not_found")
    return kept_item(found)


class _Kind(msgspec.Struct):
    type: str | None = None


_kinds = msgspec.json.Decoder(_Kind)
_items: msgspec.json.Decoder[Item] = msgspec.json.Decoder(Item)
_message = msgspec.json.Decoder(MessageItem)


def kept_item(item: dict[str, Any]) -> Item:
    """An item of an answer, as it would come back in a request."""
    return _items.decode(encode(item))


def chat_messages(items: list[Item]) -> list[dict[str, Any]]:
    """One message of the assistant for its reasoning, text and calls in a row, as a chat has them."""
    made: list[dict[str, Any]] = []
    begun: dict[str, Any] = {}  # the assistant's message, while more of it may come
    for item in items:
        if isinstance(item, CallOutputItem):
            made.append({"role": "tool", "tool_call_id": item.call_id, "content": joined(item.output)})
        elif isinstance(item, MessageItem) and item.role != "assistant":
            made.append({"role": item.role, "content": joined(item.content)})
        else:
            if not begun or _is_next(item, begun):
                begun = {"role": "assistant"}
                made.append(begun)
            _extend(begun, item)
            continue
        begun = {}
    return made


def _is_next(item: Item, begun: dict[str, Any]) -> bool:
    """Whether ``item`` of the assistant begins a message after ``begun``."""
    if isinstance(item, ReasoningItem):
        return "content" in begun or "tool_calls" in begun
    return isinstance(item, MessageItem) and ("content" in begun or "tool_calls" in begun)


def _extend(message: dict[str, Any], item: Item) -> None:
    if isinstance(item, ReasoningItem):
        text = joined(list(item.content or item.summary or []))
        if text:
            message["reasoning_content"] = "\n".join(filter(None, (message.get("reasoning_content"), text)))
    elif isinstance(item, MessageItem):
        message["content"] = joined(item.content, "")
    elif isinstance(item, CallItem):
        function = {"name": item.name, "arguments": item.arguments}
        message.setdefault("tool_calls", []).append({"id": item.call_id, "type": "function", "function": function})


def echoed(body: ResponsesRequest, sampling: Any) -> dict[str, Any]:
    """What an answer repeats of its request."""
    reasoning = body.reasoning or Reasoning()
    return {
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "reasoning": {"effort": reasoning.effort, "summary": None},
        "store": body.store is not False,
        "temperature": sampling.temperature,
        "text": {"format": (body.text and body.text.format) or {"type": "text"}},
        "tool_choice": body.tool_choice or "auto",
        "tools": [{"type": "function", "strict": False, "parameters": None, **_function(t)} for t in body.tools or ()],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": sampling.top_p,
        "truncation": "disabled",
    }
