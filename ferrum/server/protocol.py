"""Requests of OpenAI's API, field by field with ranges. Unknown fields are refused by the structs.

Fields of type ``None`` are known to OpenAI's API and not supported here: null is accepted, anything else is refused by name.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias, cast

import msgspec
from msgspec import Meta

from ferrum.engine.params import MAX_CHOICES, MAX_LOGIT_BIAS, MAX_TOKEN_ID
from ferrum.pack.step import MAX_LOGPROBS
from ferrum.server.wire import BadRequest, check_depth

MAX_STOPS = 4
MAX_MESSAGES = 4096
MAX_TOOLS = 128
MAX_PROMPTS = 64
SESSION_KEY = "ferrum_session_id"

Text: TypeAlias = str
Short: TypeAlias = Annotated[str, Meta(max_length=512)]
Name: TypeAlias = Annotated[str, Meta(min_length=1, max_length=256)]
FunctionName: TypeAlias = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
Count: TypeAlias = Annotated[int, Meta(ge=1, le=MAX_TOKEN_ID)]
TokenId: TypeAlias = Annotated[int, Meta(ge=0, le=MAX_TOKEN_ID)]
Penalty: TypeAlias = Annotated[float, Meta(ge=-2, le=2)]
Stop: TypeAlias = Annotated[str, Meta(min_length=1, max_length=1024)]
Seed: TypeAlias = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]


class Request(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Base of everything that is read from a body."""


class TextPart(Request, kw_only=True, tag_field="type", tag="text"):
    text: Text


Content: TypeAlias = str | Annotated[list[TextPart], Meta(min_length=1, max_length=1024)]


class SystemMessage(Request, kw_only=True, tag_field="role", tag="system"):
    content: Content
    name: Short | None = None


class DeveloperMessage(Request, kw_only=True, tag_field="role", tag="developer"):
    content: Content
    name: Short | None = None


class UserMessage(Request, kw_only=True, tag_field="role", tag="user"):
    content: Content
    name: Short | None = None


class CalledFunction(Request, kw_only=True):
    name: FunctionName
    arguments: str


class Call(Request, kw_only=True):
    id: Short
    function: CalledFunction
    type: Literal["function"] = "function"


class AssistantMessage(Request, kw_only=True, tag_field="role", tag="assistant"):
    content: Content | None = None
    name: Short | None = None
    reasoning_content: str | None = None
    tool_calls: Annotated[list[Call], Meta(max_length=MAX_TOOLS)] | None = None
    refusal: None = None
    audio: None = None
    annotations: Annotated[list[Any], Meta(max_length=0)] | None = None
    function_call: None = None


class ToolMessage(Request, kw_only=True, tag_field="role", tag="tool"):
    content: Content
    tool_call_id: Short
    name: Short | None = None


Message: TypeAlias = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage


class Function(Request, kw_only=True):
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Request, kw_only=True):
    type: Literal["function"]
    function: Function


class StreamOptions(Request, kw_only=True):
    include_usage: bool | None = None


class TemplateOptions(Request, kw_only=True):
    enable_thinking: bool | None = None


class GenerationRequest(Request, kw_only=True):
    """What chat and text completions share."""

    model: Name
    max_tokens: Count | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=MAX_TOKEN_ID)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=2)] | None = None
    logit_bias: Annotated[dict[str, Annotated[float, Meta(ge=-100, le=100)]], Meta(max_length=MAX_LOGIT_BIAS)] | None = None
    seed: Seed | None = None
    stop: Stop | Annotated[list[Stop], Meta(max_length=MAX_STOPS)] | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: bool | None = None
    user: Short | None = None
    metadata: Annotated[dict[Annotated[str, Meta(max_length=64)], Short], Meta(max_length=16)] | None = None
    service_tier: None = None
    store: Literal[False] | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def biases(self) -> dict[int, float]:
        """``logit_bias`` with its keys as numbers. Raises BadRequest."""
        result = {}
        for key, value in (self.logit_bias or {}).items():
            if not (key.isascii() and key.isdigit() and len(key) <= 10 and int(key) <= MAX_TOKEN_ID):
                raise BadRequest("logit_bias: the keys must be token ids", "logit_bias")
            result[int(key)] = value
        return result

    def check(self) -> None:
        """What types and ranges cannot say. Raises BadRequest."""
        if self.stream_options is not None and not self.stream:
            raise BadRequest("stream_options is allowed with stream only", "stream_options")
        if self.metadata and SESSION_KEY in self.metadata:
            raise BadRequest("sessions are not supported", f"metadata.{SESSION_KEY}", "unsupported_parameter")
        self.biases()


class ChatRequest(GenerationRequest, kw_only=True):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[Message], Meta(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    tools: Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    response_format: Any = None
    chat_template_kwargs: TemplateOptions | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    functions: None = None
    function_call: None = None
    modalities: Annotated[list[Literal["text"]], Meta(max_length=1)] | None = None
    audio: None = None
    prediction: None = None
    web_search_options: None = None
    verbosity: None = None
    prompt_cache_key: None = None
    safety_identifier: None = None

    def check(self) -> None:
        super().check()
        if self.top_logprobs is not None and not self.logprobs:
            raise BadRequest("top_logprobs needs logprobs", "top_logprobs")
        self._check_tools()
        check_response_format(self.response_format)

    def _check_tools(self) -> None:
        names = set()
        for tool in self.tools or ():
            function = tool.function
            if function.name in names:
                raise BadRequest(f"the function {function.name} is declared twice", "tools")
            if function.strict:
                raise BadRequest("strict functions are not supported yet", "tools", "unsupported_parameter")
            names.add(function.name)
            check_depth(function.parameters, "tools")
        choice = self.tool_choice
        if choice is None or choice == "none":
            return
        if choice == "auto":
            if not self.tools:
                raise BadRequest("tool_choice needs tools", "tool_choice")
        elif choice == "required" or isinstance(choice, dict):
            raise BadRequest("only auto and none are supported yet", "tool_choice", "unsupported_parameter")
        else:
            raise BadRequest("tool_choice must be auto or none", "tool_choice")

    @property
    def uses_tools(self) -> bool:
        return bool(self.tools) and self.tool_choice != "none"


def check_response_format(value: Any) -> None:
    """Raises BadRequest for everything but text."""
    if value is None or value == {"type": "text"}:
        return
    kind = value.get("type") if isinstance(value, dict) else None
    if kind in ("json_object", "json_schema"):
        param = "response_format.json_schema" if kind == "json_schema" else "response_format"
        raise BadRequest(f"{kind} is not supported yet", param, "unsupported_parameter")
    raise BadRequest("response_format must be {type: text}", "response_format")


class CompletionRequest(GenerationRequest, kw_only=True):
    """``POST /v1/completions``."""

    prompt: (
        str
        | Annotated[
            list[str | TokenId | Annotated[list[TokenId], Meta(min_length=1)]],
            Meta(min_length=1),
        ]
    )
    logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    echo: Literal[False] | None = None
    suffix: None = None
    best_of: None = None

    def prompts(self) -> list[str] | list[list[int]]:
        """One entry per prompt. Raises BadRequest for a mixture."""
        value = self.prompt
        if isinstance(value, str):
            return [value]
        kinds = {type(item) for item in value}
        if len(kinds) != 1:
            raise BadRequest("prompt must not mix texts, token ids and lists of token ids", "prompt")
        if kinds == {int}:
            return [cast(list[int], value)]
        if len(value) > MAX_PROMPTS:
            raise BadRequest(f"prompt may hold {MAX_PROMPTS} prompts", "prompt")
        return cast(list[str] | list[list[int]], value)


class TokenizeRequest(Request, kw_only=True):
    """``POST /tokenize``: of a text, or of messages as a chat would send them."""

    model: Name | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Meta(min_length=1, max_length=MAX_MESSAGES)] | None = None
    tools: Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True
    chat_template_kwargs: TemplateOptions | None = None

    def check(self) -> None:
        if (self.prompt is None) == (self.messages is None):
            raise BadRequest("give either prompt or messages", "prompt")
        for name in ("tools", "chat_template_kwargs"):
            if getattr(self, name) is not None and self.messages is None:
                raise BadRequest(f"{name} is allowed with messages only", name)
        for tool in self.tools or ():
            check_depth(tool.function.parameters, "tools")


class DetokenizeRequest(Request, kw_only=True):
    """``POST /detokenize``."""

    tokens: Annotated[list[TokenId], Meta(max_length=1 << 18)]
    model: Name | None = None
    skip_special_tokens: bool = False

    def check(self) -> None:
        """Nothing that the types do not say."""
