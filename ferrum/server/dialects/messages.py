"""Anthropic's Messages API: ``POST /v1/messages`` and ``/v1/messages/count_tokens``.

"thinking" is taken as leave to think, and its budget as the most: a model without it answers without.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta
from sanic import Request as HttpRequest
from sanic.response import HTTPResponse

from ferrum.server.choice import Delta
from ferrum.server.dialects.blocks import Block, BlockChange, Closed, ContentBlocks, Grew, Opened
from ferrum.server.dialects.common import chat_request, joined, parsed_arguments
from ferrum.server.error_shapes import anthropic
from ferrum.server.errors import ApiError, invalid
from ferrum.server.exchange import Counts, Exchange
from ferrum.server.fields import Hint, Json, Request, only
from ferrum.server.parts import Unread
from ferrum.server.prepare import chat_prompt, prepare_chat
from ferrum.server.protocol import MAX_MESSAGES, MAX_TOOLS, ChatRequest, Short, ThinkingTokens
from ferrum.server.routes.common import answer, read
from ferrum.server.sse import Event, Framing, ServerSentEvents
from ferrum.server.state import ServerState, state_of
from ferrum.server.thinking import marks_of

PARAMS: Mapping[str, str] = {
    "stop": "stop_sequences",
    "chat_template_kwargs": "thinking",
    "continue_final_message": "messages",
    "max_completion_tokens": "max_tokens",
    "response_format": "output_format",
}
_STOPS = {"length": "max_tokens", "tool_calls": "tool_use", "stop": "end_turn"}


class TextBlock(Request, kw_only=True, tag_field="type", tag="text"):
    text: str
    cache_control: Hint = None
    citations: Hint = None


class ImageBlock(Unread, kw_only=True, tag_field="type", tag="image"):
    source: Json = None


class DocumentBlock(Unread, kw_only=True, tag_field="type", tag="document"):
    source: Json = None


class ThinkingBlock(Request, kw_only=True, tag_field="type", tag="thinking"):
    thinking: str
    signature: Hint = None


class RedactedThinkingBlock(Request, kw_only=True, tag_field="type", tag="redacted_thinking"):
    data: Hint = None


class ToolUseBlock(Request, kw_only=True, tag_field="type", tag="tool_use"):
    id: Short
    name: str
    input: dict[str, Any]
    cache_control: Hint = None
    caller: Hint = None
    toolset_name: Hint = None


class ToolResultBlock(Request, kw_only=True, tag_field="type", tag="tool_result"):
    tool_use_id: Short
    content: str | list[TextBlock | ImageBlock | DocumentBlock] | None = None
    is_error: Hint = None  # chat templates have no word for it; the content says it
    cache_control: Hint = None


AnyBlock: TypeAlias = (
    TextBlock | ImageBlock | DocumentBlock | ThinkingBlock | RedactedThinkingBlock | ToolUseBlock | ToolResultBlock
)


class Turn(Request, kw_only=True):
    role: Literal["user", "assistant", "system"]
    content: str | list[AnyBlock]


class Tool(Request, kw_only=True):
    name: str
    input_schema: dict[str, Any] | None = None
    description: str | None = None
    type: Literal["custom"] | None = None
    cache_control: Hint = None
    strict: bool | None = None
    eager_input_streaming: Hint = None
    input_examples: Hint = None
    defer_loading: Annotated[Json, only(False)] = None
    allowed_callers: Annotated[Json, only([], ["direct"])] = None


class ToolChoice(Request, kw_only=True):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(Request, kw_only=True):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: ThinkingTokens | None = None
    display: Hint = None


class OutputFormat(Request, kw_only=True):
    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(Request, kw_only=True):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class CountRequest(Request, kw_only=True):
    """What counts, which is all that becomes a part of the prompt."""

    model: Annotated[str, Meta(max_length=256)] | None = None
    messages: Annotated[list[Turn], Meta(min_length=1, max_length=MAX_MESSAGES)]
    system: str | list[TextBlock] | None = None
    tools: Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    cache_control: Hint = None
    context_management: Hint = None  # nothing is ever cut from a conversation here
    mcp_servers: Annotated[Json, only([])] = None
    output_format: OutputFormat | None = None  # as it was called first
    speed: Hint = None
    user_profile_id: Hint = None
    workspace_id: Hint = None

    def check(self) -> None:
        """``chat`` looks at what the types do not say."""


class MessagesRequest(CountRequest, kw_only=True):
    max_tokens: Annotated[int, Meta(ge=1)]
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    metadata: Hint = None
    service_tier: Hint = None
    inference_geo: Hint = None
    diagnostics: Hint = None
    container: None = None


async def messages(request: HttpRequest) -> HTTPResponse | None:
    body = await read(request, _messages)
    exchange = Exchange(request, "msg_", stream=bool(body.stream), params=PARAMS)
    exchange.state.check_model(body.model)
    chat = chat_request(
        {
            **fields_of(exchange.state, body),
            "max_tokens": body.max_tokens,
            "stop": body.stop_sequences,
            "temperature": body.temperature,
            "top_k": body.top_k,
            "top_p": body.top_p,
        },
        PARAMS,
    )
    size = len(request.body)
    return await exchange.run(
        lambda: prepare_chat(exchange.state, chat, size),
        lambda _: MessagesWriter(exchange),
        continues=chat.ends == "continued",
    )


async def count_tokens(request: HttpRequest) -> HTTPResponse:
    state, body = state_of(request), await read(request, _count)
    state.check_model(body.model)
    chat: ChatRequest = chat_request(fields_of(state, body), PARAMS)
    _, tokens = await chat_prompt(state, chat, len(request.body))
    return answer({"input_tokens": len(tokens)})


_messages = msgspec.json.Decoder(MessagesRequest)
_count = msgspec.json.Decoder(CountRequest)


# ---- their request as a chat request


def fields_of(state: ServerState, body: CountRequest) -> dict[str, Any]:
    """The fields of a chat request that both routes have. Raises ApiError."""
    takes = state.template.takes if state.template is not None else (lambda _: False)
    fields: dict[str, Any] = {"messages": messages_of(body)}
    if body.messages[-1].role == "assistant":  # theirs is a prefix of the answer
        fields["continue_final_message"] = True
    if body.tools:
        fields["tools"] = [
            {
                "type": "function",
                "function": _without_none(name=t.name, description=t.description, parameters=t.input_schema, strict=t.strict),
            }
            for t in body.tools
        ]
    if body.tool_choice is not None:
        fields |= _choice(body.tool_choice)
    switched = body.thinking is not None and body.thinking.type != "adaptive"
    if body.thinking is not None and switched and (takes("enable_thinking") or body.thinking.type == "disabled"):
        fields["chat_template_kwargs"] = {"enable_thinking": body.thinking.type == "enabled"}
    if body.thinking is not None and body.thinking.type == "enabled" and marks_of(state) is not None:
        fields["thinking_token_budget"] = body.thinking.budget_tokens
    if body.output_config is not None and body.output_config.effort and takes("reasoning_effort"):
        effort = body.output_config.effort
        fields["reasoning_effort"] = "xhigh" if effort == "max" else effort
    form = body.output_format or (body.output_config.format if body.output_config is not None else None)
    if form is not None:
        fields["response_format"] = {"type": "json_schema", "json_schema": {"schema": form.schema}}
    return fields


def _choice(choice: ToolChoice) -> dict[str, Any]:
    kinds: dict[str, Any] = {"auto": "auto", "none": "none", "any": "required"}
    named = {"type": "function", "function": {"name": choice.name or ""}}
    fields: dict[str, Any] = {"tool_choice": kinds.get(choice.type, named)}
    if choice.disable_parallel_tool_use:
        fields["parallel_tool_calls"] = False
    return fields


def messages_of(body: CountRequest) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    if body.system:
        made.append({"role": "system", "content": joined(body.system)})
    for turn in body.messages:
        if isinstance(turn.content, str):
            made.append({"role": turn.role, "content": turn.content})
        elif turn.role == "assistant":
            made.append(_assistant(turn.content))
        else:
            made += _others(turn)
    return made


def _assistant(blocks: list[AnyBlock]) -> dict[str, Any]:
    text = [b.text for b in blocks if isinstance(b, TextBlock)]
    thinking = [b.thinking for b in blocks if isinstance(b, ThinkingBlock)]
    calls = [
        {"id": b.id, "type": "function", "function": {"name": b.name, "arguments": msgspec.json.encode(b.input).decode()}}
        for b in blocks
        if isinstance(b, ToolUseBlock)
    ]
    if any(isinstance(b, ToolResultBlock) for b in blocks):
        raise invalid("tool_result belongs into a message of the user", "messages")
    return {"role": "assistant"} | _without_none(
        content="".join(text) if text else None, reasoning_content="\n".join(thinking) or None, tool_calls=calls or None
    )


def _others(turn: Turn) -> list[dict[str, Any]]:
    """Results of tools are messages of their own; the texts between them too."""
    made: list[dict[str, Any]] = []
    for block in turn.content:
        if isinstance(block, ToolResultBlock):
            made.append({"role": "tool", "tool_call_id": block.tool_use_id, "content": joined(block.content)})
        elif not isinstance(block, TextBlock):
            raise invalid("thinking and tool_use belong into messages of the assistant", "messages")
        elif made and made[-1]["role"] == turn.role:
            made[-1]["content"].append({"type": "text", "text": block.text})
        else:
            made.append({"role": turn.role, "content": [{"type": "text", "text": block.text}]})
    return made


def _without_none(**fields: Any) -> dict[str, Any]:
    return {k: v for k, v in fields.items() if v is not None}


# ---- deltas as their answer


class MessagesWriter:
    framing: Framing = ServerSentEvents(alive=b'event: ping\ndata: {"type":"ping"}\n\n')

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._blocks = ContentBlocks()

    def opening(self, counts: Counts) -> list[Event]:
        message = self._message([], None, None, {**_input(counts), "output_tokens": 0})
        return [_event("message_start", message=message)]

    def chunk(self, delta: Delta) -> list[Event]:
        return [_step(step) for step in self._blocks.feed(delta)]

    def closing(self, counts: Counts) -> list[Event]:
        reason, matched = self._ended()
        usage = {**_input(counts), "output_tokens": counts.completion}
        delta = {"stop_reason": reason, "stop_sequence": matched}
        return [_event("message_delta", delta=delta, usage=usage), _event("message_stop")]

    def failed(self, error: ApiError) -> list[Event]:
        return [Event(anthropic(error, self._exchange.record.id), "error")]

    def add(self, delta: Delta) -> None:
        self._blocks.add(delta)

    def whole(self, counts: Counts) -> dict[str, Any]:
        reason, matched = self._ended()
        content = [_whole_block(b) for b in self._blocks.all]
        return self._message(content, reason, matched, {**_input(counts), "output_tokens": counts.completion})

    def _ended(self) -> tuple[str, str | None]:
        if self._blocks.matched_stop:
            return "stop_sequence", self._blocks.matched_stop
        return _STOPS.get(self._blocks.finish_reason, "end_turn"), None

    def _message(self, content: list[Any], reason: str | None, matched: str | None, usage: dict[str, int]) -> dict[str, Any]:
        return {
            "id": self._exchange.id,
            "type": "message",
            "role": "assistant",
            "model": self._exchange.state.model_name,
            "content": content,
            "stop_reason": reason,
            "stop_sequence": matched,
            "usage": usage,
        }


def _input(counts: Counts) -> dict[str, int]:
    read_tokens = counts.cached
    return {
        "input_tokens": counts.prompt - read_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": read_tokens,
    }


def _whole_block(block: Block) -> dict[str, Any]:
    if block.kind == "text":
        return {"type": "text", "text": block.text, "citations": None}
    if block.kind == "reasoning":
        return {"type": "thinking", "thinking": block.text, "signature": ""}
    return {"type": "tool_use", "id": block.call_id, "name": block.name, "input": parsed_arguments(block.text)}


def _step(step: BlockChange) -> Event:
    block = step.block
    if isinstance(step, Opened):
        empty: dict[str, Any] = {"type": "text", "text": ""}
        if block.kind == "reasoning":
            empty = {"type": "thinking", "thinking": "", "signature": ""}
        elif block.kind == "call":
            empty = {"type": "tool_use", "id": block.call_id, "name": block.name, "input": {}}
        return _event("content_block_start", index=block.index, content_block=empty)
    if isinstance(step, Closed):
        return _event("content_block_stop", index=block.index)
    assert isinstance(step, Grew)
    kind, field = _DELTAS[block.kind]
    return _event("content_block_delta", index=block.index, delta={"type": kind, field: step.text})


_DELTAS = {
    "text": ("text_delta", "text"),
    "reasoning": ("thinking_delta", "thinking"),
    "call": ("input_json_delta", "partial_json"),
}


def _event(kind: str, **fields: Any) -> Event:
    return Event({"type": kind, **fields}, kind)
