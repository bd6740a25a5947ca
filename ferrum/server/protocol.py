"""Requests of OpenAI's API and what its other servers add to it, field by field with ranges.

Each struct is the table of its route: ``fields`` says what the three kinds of fields are. A field of type ``None`` is known, has
no default that could be sent, and is refused by name.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias, cast

from msgspec import Meta

from ferrum.engine.params import MAX_CHOICES, MAX_LOGIT_BIAS, MAX_TOKEN_ID
from ferrum.errors import one_line
from ferrum.pack.step import MAX_LOGPROBS
from ferrum.server.fields import Hint, Json, Request, only
from ferrum.server.forms import wish_of
from ferrum.server.parts import Content
from ferrum.server.wire import BadRequest, check_depth

MAX_STOPS = 4
MAX_MESSAGES = 4096
MAX_TOOLS = 128
MAX_PROMPTS = 64
SESSION_KEY = "ferrum_session_id"

Short: TypeAlias = Annotated[str, Meta(max_length=512)]
Name: TypeAlias = Annotated[str, Meta(max_length=256)]
FunctionName: TypeAlias = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]
Limit: TypeAlias = Annotated[int, Meta(ge=-1, le=MAX_TOKEN_ID)]  # -1: no limit but the context
TokenId: TypeAlias = Annotated[int, Meta(ge=0, le=MAX_TOKEN_ID)]
Penalty: TypeAlias = Annotated[float, Meta(ge=-2, le=2)]
Stop: TypeAlias = Annotated[str, Meta(max_length=1024)]
Seed: TypeAlias = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]


class SystemMessage(Request, kw_only=True, tag_field="role", tag="system"):
    content: Content
    name: Short | None = None
    cache_control: Hint = None


class DeveloperMessage(Request, kw_only=True, tag_field="role", tag="developer"):
    content: Content
    name: Short | None = None
    cache_control: Hint = None


class UserMessage(Request, kw_only=True, tag_field="role", tag="user"):
    content: Content
    name: Short | None = None
    cache_control: Hint = None


class CalledFunction(Request, kw_only=True):
    name: FunctionName
    arguments: str


class Call(Request, kw_only=True):
    id: Short
    function: CalledFunction
    type: Literal["function"] | None = "function"
    index: Hint = None


class AssistantMessage(Request, kw_only=True, tag_field="role", tag="assistant"):
    content: Content | None = None
    name: Short | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: Annotated[list[Call], Meta(max_length=MAX_TOOLS)] | None = None
    audio: None = None
    function_call: None = None
    refusal: Hint = None
    annotations: Hint = None
    reasoning_details: Hint = None
    provider_specific_fields: Hint = None
    cache_control: Hint = None
    prefix: Annotated[Json, only(False)] = None


class ToolMessage(Request, kw_only=True, tag_field="role", tag="tool"):
    content: Content
    tool_call_id: Short
    name: Short | None = None
    cache_control: Hint = None


Message: TypeAlias = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage


class Function(Request, kw_only=True):
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Request, kw_only=True):
    type: Literal["function"]
    function: Function
    cache_control: Hint = None


# an answer that is begun by the template, none, or the assistant's last message, without its end
PromptEnd: TypeAlias = Literal["begun", "open", "continued"]


class StreamOptions(Request, kw_only=True):
    include_usage: bool | None = None
    include_obfuscation: Hint = None
    continuous_usage_stats: Annotated[Json, only(False)] = None


class TemplateOptions(Request, kw_only=True):
    enable_thinking: bool | None = None


Effort: TypeAlias = Literal["none", "minimal", "low", "medium", "high", "xhigh"]
ThinkingTokens: TypeAlias = Annotated[int, Meta(ge=0, le=MAX_TOKEN_ID)]


class ReasoningOptions(Request, kw_only=True):
    """OpenRouter's form."""

    effort: Effort | None = None
    max_tokens: ThinkingTokens | None = None
    enabled: bool | None = None
    exclude: Annotated[Json, only(False)] = None
    summary: Hint = None


class ThinkingOptions(Request, kw_only=True):
    """Anthropic's form, as proxies hand it on."""

    type: Literal["enabled", "disabled", "adaptive"] | None = None
    budget_tokens: ThinkingTokens | None = None


class GenerationRequest(Request, kw_only=True):
    """What chat and text completions share."""

    model: Name | None = None
    max_tokens: Limit | None = None
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
    best_of: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    service_tier: Hint = None
    store: Hint = None
    prompt_cache_key: Hint = None
    prompt_cache_retention: Hint = None
    safety_identifier: Hint = None
    priority: Hint = None
    request_id: Hint = None
    cache_prompt: Hint = None
    id_slot: Hint = None
    use_beam_search: Annotated[Json, only(False)] = None
    length_penalty: Annotated[Json, only(1)] = None
    min_tokens: Annotated[Json, only(0)] = None
    stop_token_ids: Annotated[Json, only([])] = None
    bad_words: Annotated[Json, only([])] = None
    include_stop_str_in_output: Annotated[Json, only(False)] = None
    skip_special_tokens: Annotated[Json, only(True)] = None
    spaces_between_special_tokens: Annotated[Json, only(True)] = None
    return_tokens_as_token_ids: Annotated[Json, only(False)] = None
    return_token_ids: Annotated[Json, only(False)] = None
    timings_per_token: Annotated[Json, only(False)] = None
    repeat_penalty: Annotated[Json, only(1)] = None
    typical_p: Annotated[Json, only(1)] = None
    mirostat: Annotated[Json, only(0)] = None
    dynatemp_range: Annotated[Json, only(0)] = None
    dry_multiplier: Annotated[Json, only(0)] = None
    xtc_probability: Annotated[Json, only(0)] = None
    truncate_prompt_tokens: None = None
    prompt_logprobs: None = None
    allowed_token_ids: None = None
    response_format: Any = None
    structured_outputs: Any = None
    guided_json: Any = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    guided_decoding_backend: Hint = None
    guided_whitespace_pattern: None = None
    json_schema: Any = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    ebnf: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.max_tokens = _limit(self.max_tokens, "max_tokens")

    @property
    def stops(self) -> tuple[str, ...]:
        given = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return tuple(text for text in given if text)

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def biases(self) -> dict[int, float]:
        """``logit_bias`` with its keys as numbers. Raises BadRequest."""
        given = self.logit_bias or {}
        wrong = [k for k in given if not (k.isascii() and k.isdigit() and len(k) <= 10 and int(k) <= MAX_TOKEN_ID)]
        if wrong:
            named = ", ".join(one_line(key, 32) for key in wrong[:4])
            raise BadRequest(f"logit_bias: the keys must be token ids, not {named}", "logit_bias")
        return {int(key): value for key, value in given.items()}

    def check(self) -> None:
        """What types and ranges cannot say. Raises BadRequest."""
        if self.best_of not in (None, self.n or 1):
            raise BadRequest("best_of is not supported beyond n", "best_of", "unsupported_parameter")
        if self.metadata and SESSION_KEY in self.metadata:
            raise BadRequest("sessions are not supported", f"metadata.{SESSION_KEY}", "unsupported_parameter")
        if self.stream_options is not None and not self.stream:
            raise BadRequest("stream_options is allowed with stream only", "stream_options")
        self.biases()
        for name in FREE_FORM:
            check_depth(getattr(self, name), name)
        wish_of(self)


FREE_FORM = ("response_format", "structured_outputs", "guided_json", "json_schema")


def _limit(value: int | None, name: str) -> int | None:
    if value == 0:
        raise ValueError(f"{name} must be 1 or more")
    return None if value == -1 else value


class ChatRequest(GenerationRequest, kw_only=True):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[Message], Meta(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Limit | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    tools: Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: TemplateOptions | None = None
    reasoning_effort: Effort | None = None
    reasoning: ReasoningOptions | None = None
    thinking: ThinkingOptions | None = None
    thinking_token_budget: Annotated[int, Meta(ge=-1, le=MAX_TOKEN_ID)] | None = None
    reasoning_budget: Annotated[int, Meta(ge=-1, le=MAX_TOKEN_ID)] | None = None
    functions: Annotated[Json, only([])] = None
    function_call: Annotated[Json, only("auto", "none")] = None
    modalities: Annotated[list[Literal["text"]], Meta(max_length=1)] | None = None
    audio: None = None
    web_search_options: None = None
    chat_template: None = None
    prediction: Hint = None
    verbosity: Hint = None
    documents: Annotated[Json, only([])] = None
    echo: Annotated[Json, only(False)] = None
    add_generation_prompt: bool | None = None
    add_special_tokens: Annotated[Json, only(False)] = None
    continue_final_message: bool | None = None
    include_reasoning: Annotated[Json, only(True)] = None
    separate_reasoning: Annotated[Json, only(True)] = None
    reasoning_format: Annotated[Json, only("auto", "deepseek")] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.max_completion_tokens = _limit(self.max_completion_tokens, "max_completion_tokens")

    def check(self) -> None:
        super().check()
        if self.top_logprobs and not self.logprobs:
            raise BadRequest("top_logprobs needs logprobs", "top_logprobs")
        self._check_tools()
        self._check_continued()
        self.thinking_tokens()

    def _check_continued(self) -> None:
        if not self.continue_final_message:
            return
        last = self.messages[-1]
        if self.add_generation_prompt:
            raise BadRequest("add_generation_prompt begins a new message, so nothing is continued", "add_generation_prompt")
        if not isinstance(last, AssistantMessage) or not last.content or last.tool_calls:
            raise BadRequest("the last message must be a text of the assistant, to be continued", "continue_final_message")

    @property
    def ends(self) -> PromptEnd:
        """Where the prompt leaves the model."""
        if self.continue_final_message:
            return "continued"
        return "open" if self.add_generation_prompt is False else "begun"

    def _check_tools(self) -> None:
        names = set()
        for tool in self.tools or ():
            function = tool.function
            if function.name in names:
                raise BadRequest(f"the function {function.name} is declared twice", "tools")
            names.add(function.name)
            check_depth(function.parameters, "tools")
        self._check_choice(names)

    def _check_choice(self, names: set[str]) -> None:
        choice = self.tool_choice
        if choice in (None, "none", "auto"):
            return
        if isinstance(choice, dict) and choice.get("type") == "function":
            function = choice.get("function", choice)
            name = function.get("name") if isinstance(function, dict) else None
            if name not in names:
                raise BadRequest(f"tool_choice names {one_line(str(name), 128)}, which tools does not declare", "tool_choice")
        elif choice != "required":
            raise BadRequest("tool_choice must be none, auto, required or a function", "tool_choice", "unsupported_parameter")
        elif not names:
            raise BadRequest("tool_choice is required, and tools declares none", "tool_choice")

    @property
    def effort(self) -> str | None:
        """By any of its names."""
        nested = self.reasoning.effort if self.reasoning is not None else None
        return self.reasoning_effort or nested

    @property
    def wants_thinking(self) -> bool | None:
        """What the request says of thinking, apart from an effort."""
        if self.chat_template_kwargs is not None and self.chat_template_kwargs.enable_thinking is not None:
            return self.chat_template_kwargs.enable_thinking
        if self.reasoning is not None and self.reasoning.enabled is not None:
            return self.reasoning.enabled
        kind = self.thinking.type if self.thinking is not None else None
        return kind == "enabled" if kind in ("enabled", "disabled") else None

    def thinking_tokens(self) -> tuple[int | None, str]:
        """Most tokens of reasoning, and the field that says so; -1 is no bound. Raises BadRequest when two differ."""
        given = {
            "reasoning.max_tokens": self.reasoning.max_tokens if self.reasoning is not None else None,
            "thinking.budget_tokens": self.thinking.budget_tokens if self.thinking is not None else None,
            "thinking_token_budget": self.thinking_token_budget,
            "reasoning_budget": self.reasoning_budget,
        }
        named = {name: value for name, value in given.items() if value is not None and value >= 0}
        if len(set(named.values())) > 1:
            raise BadRequest(f"{' and '.join(named)} differ", next(iter(named)))
        return next(((value, name) for name, value in named.items()), (None, ""))

    @property
    def uses_tools(self) -> bool:
        return bool(self.tools) and self.tool_choice != "none"


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
    echo: Annotated[Json, only(False)] = None
    suffix: str | None = None

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
    """``POST /tokenize``: of a text, or of messages as a chat would send them.

    vLLM's fields, and llama.cpp's: ``content`` is a text whose special tokens come with ``add_special`` only.
    """

    model: Name | None = None
    prompt: str | None = None
    content: str | None = None
    add_special: bool | None = None
    parse_special: Annotated[Json, only(True)] = None
    with_pieces: bool | None = None
    messages: Annotated[list[Message], Meta(min_length=1, max_length=MAX_MESSAGES)] | None = None
    tools: Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    return_token_strs: bool | None = None
    chat_template_kwargs: TemplateOptions | None = None

    def check(self) -> None:
        if sum(given is not None for given in (self.prompt, self.content, self.messages)) != 1:
            raise BadRequest("give one of prompt, content and messages", "prompt")
        for name in ("tools", "chat_template_kwargs"):
            if getattr(self, name) is not None and self.messages is None:
                raise BadRequest(f"{name} is allowed with messages only", name)
        for tool in self.tools or ():
            check_depth(tool.function.parameters, "tools")


class DetokenizeRequest(Request, kw_only=True):
    """``POST /detokenize``."""

    tokens: Annotated[list[TokenId], Meta(max_length=1 << 18)]
    model: Name | None = None
    skip_special_tokens: bool | None = None

    def check(self) -> None:
        """Nothing that the types do not say."""
