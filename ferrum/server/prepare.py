"""From a checked request to what the engine is given: token ids, sampling parameters, and how to read the answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from ferrum.engine.params import SamplingParams
from ferrum.errors import FerrumError
from ferrum.server.budget import cap_tokens
from ferrum.server.choice import TextOptions
from ferrum.server.errors import from_ferrum, invalid, unsupported
from ferrum.server.protocol import ChatRequest, CompletionRequest, GenerationRequest, Message, PromptEnd, Tool
from ferrum.server.state import ServerState
from ferrum.server.structured import grammar_of
from ferrum.server.thinking import thinking_budget
from ferrum.server.wire import BadRequest
from ferrum.text.prompt_end import up_to_mark, with_mark, without_reasoning
from ferrum.text.reasoning import Opening, opening

COMPLETION_TOKENS = 16  # OpenAI's default for text completions
CHAT_PARAMS: Mapping[str, str] = {"prompt": "messages"}


@dataclass(frozen=True)
class Prepared:
    """A request that is ready to run. ``params`` names fields in errors of the engine."""

    prompts: list[list[int]]
    sampling: SamplingParams
    text: TextOptions
    param_names: Mapping[str, str]


async def prepare_chat(state: ServerState, request: ChatRequest, size: int) -> Prepared:
    """``size``: bytes of the request. Raises ApiError."""
    tools = request.tools if request.uses_tools else None
    if tools and state.tool_format is None:
        raise unsupported("tools", "this model has no tool format")
    text, ids = await chat_prompt(state, request, size)
    names = dict(CHAT_PARAMS)
    if request.max_completion_tokens is not None:
        names["max_tokens"] = "max_completion_tokens"
    wanted = (request.top_logprobs or 0) if request.logprobs else None
    room = state.backend.info.max_model_len - len(ids)
    limit = request.max_completion_tokens or request.max_tokens
    limit = cap_tokens(limit, room, sequences=request.n or 1, logprobs=wanted, field=names.get("max_tokens", "max_tokens"))
    grammar = await grammar_of(state, request, text)
    sampling = sampling_params(state, request, limit, wanted, grammar)
    reading = text_options(state, request, uses_tools=bool(tools), prompt=text)
    budget = thinking_budget(state, request, limit or room, reading.begins)
    if budget is not None:
        sampling = replace(sampling, thinking=budget)
    return Prepared([ids], sampling, reading, names)


async def prepare_completion(state: ServerState, request: CompletionRequest, ends: tuple[int, ...] = ()) -> Prepared:
    """``ends``: tokens that end the answer beside the model's own. Raises ApiError."""
    encode: Callable[[str], list[int]] = state.tokenizer.encode
    around = len(request.suffix or "")
    if request.suffix:
        encode, ends = _filling(state, request)
    prompts: list[list[int]] = []
    limit = state.max_chars
    try:
        given = request.prompts()
    except BadRequest as error:
        raise invalid(error.message, error.param) from None
    for prompt in given:
        if isinstance(prompt, list):
            if request.suffix:
                raise invalid("suffix is for prompts that are texts", "suffix")
            prompts.append(prompt)
            continue
        check_size(len(prompt) + around, limit, "prompt")
        try:
            prompts.append(await state.off_loop(len(prompt) + around, encode, prompt))
        except FerrumError as error:
            raise from_ferrum(error) from None
    longest = max(len(p) for p in prompts)
    room = state.backend.info.max_model_len - longest
    max_tokens = request.max_tokens or max(1, min(COMPLETION_TOKENS, room))
    cap_tokens(max_tokens, room, sequences=len(prompts) * (request.n or 1), logprobs=request.logprobs)
    grammar = await grammar_of(state, request, "")
    sampling = sampling_params(state, request, max_tokens, request.logprobs, grammar, ends)
    reading = TextOptions(stops=request.stops, logprobs=request.logprobs is not None)
    if len(prompts) * sampling.n > state.backend.info.max_queue:
        raise invalid(f"prompts times n must not exceed {state.backend.info.max_queue}", "n")
    return Prepared(prompts, sampling, reading, {})


def _filling(state: ServerState, request: CompletionRequest) -> tuple[Callable[[str], list[int]], tuple[int, ...]]:
    """How prompts become tokens when what stands after them is given, and what ends their answers. Raises ApiError."""
    infill, suffix = state.infill, request.suffix or ""
    if infill is None:
        raise unsupported("suffix", "suffix is not supported: this model's tokenizer has no tokens to fill in before one")
    return lambda prompt: infill.tokens(prompt, suffix), infill.end_ids


async def chat_prompt(state: ServerState, request: ChatRequest, size: int) -> tuple[str, list[int]]:
    """The prompt of a chat and its tokens. ``size``: bytes of the request. Raises ApiError."""
    options = template_options(state, request.wants_thinking, request.effort)
    tools = request.tools if request.uses_tools else None
    silent = bars_reasoning(state, request.wants_thinking, request.effort)
    return await chat_tokens(state, request.messages, tools, options, size, ends=request.ends, silent=silent)


async def chat_tokens(
    state: ServerState,
    messages: Sequence[Message],
    tools: Sequence[Tool] | None,
    options: Mapping[str, Any],
    size: int,
    *,
    ends: PromptEnd = "begun",
    silent: bool = False,
) -> tuple[str, list[int]]:
    """The rendered prompt and its tokens. ``size``: bytes of the request. ``silent``: the reasoning is closed at once, whatever
    the template does. Raises ApiError."""
    template = state.template
    if template is None:
        raise invalid("this model has no chat template; use /v1/completions", "messages")
    limit = state.max_chars

    def work() -> tuple[str, list[int]]:
        conversation, declared = plain(messages), [described(tool) for tool in plain(tools)] if tools else None
        check_size(sum(map(weight, conversation)), limit, "messages")
        shown = with_mark(conversation) if ends == "continued" else conversation
        text = template.render(shown, tools=declared, options=options, add_generation_prompt=ends == "begun")
        if ends == "continued":
            text = up_to_mark(text)
        elif silent and ends == "begun":
            text = without_reasoning(text, state.text.reasoning_start, state.text.reasoning_end)
        check_size(len(text), 2 * limit, "messages")
        return text, state.tokenizer.encode(text, special=False)

    try:
        return await state.in_thread(work)  # a template may take long
    except FerrumError as error:
        raise from_ferrum(error, CHAT_PARAMS) from None


def plain(value: Any) -> list[dict[str, Any]]:
    """Structs as dicts without the fields that were not given; ``role`` and ``type`` included."""
    return [_without_none(v) for v in msgspec.to_builtins(value)]


def described(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool as templates show it: ``strict`` is said to the server, and no model knows it."""
    return {**tool, "function": {k: v for k, v in tool["function"].items() if k != "strict"}}


def _without_none(value: dict[str, Any]) -> dict[str, Any]:
    return {k: _without_none(v) if isinstance(v, dict) and k != "parameters" else v for k, v in value.items() if v is not None}


def weight(value: Any) -> int:
    """Characters in all texts of JSON data."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(len(k) + weight(v) for k, v in value.items())
    return sum(map(weight, value)) if isinstance(value, list) else 1


def check_size(size: int, limit: int, param: str) -> None:
    if size > limit:
        raise invalid(f"{param} may have {limit} characters", param, "context_length_exceeded")


def template_options(state: ServerState, thinking: bool | None, effort: str | None = None) -> dict[str, Any]:
    """Variables for the chat template. ``thinking``: whether the request wants it.

    Raises ApiError for one that this model's template does not look at.
    """
    options: dict[str, Any] = {}
    takes = state.template.takes if state.template is not None else (lambda _: False)
    if effort is not None and not takes("reasoning_effort"):
        if not takes("enable_thinking") and effort != "none":  # switching off what is not there asks for nothing
            raise unsupported("reasoning_effort", "this model does not take reasoning_effort")
        thinking = effort != "none" if thinking is None and takes("enable_thinking") else thinking
    elif effort is not None:
        options["reasoning_effort"] = effort
        if thinking is None and takes("enable_thinking"):
            thinking = effort != "none"
    if thinking is not None and takes("enable_thinking"):
        options["enable_thinking"] = thinking
    elif thinking and not state.text.reasoning_end:  # a model that always reasons does what is asked
        raise unsupported("chat_template_kwargs.enable_thinking", "this model has no thinking to enable")
    return options


def bars_reasoning(state: ServerState, thinking: bool | None, effort: str | None) -> bool:
    """Whether a request wants no reasoning of a model whose template has no switch for it."""
    takes = state.template.takes if state.template is not None else (lambda _: False)
    if takes("enable_thinking") or takes("reasoning_effort"):
        return False
    return thinking is False or (thinking is None and effort == "none")


def sampling_params(
    state: ServerState,
    request: GenerationRequest,
    max_tokens: int | None,
    logprobs: int | None,
    grammar: str = "",
    ends: tuple[int, ...] = (),
) -> SamplingParams:
    """The request's fields, then the model's generation defaults, then OpenAI's. Raises ApiError."""
    greedy = state.text.generation.get("do_sample") is False
    try:
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=state.default("temperature", request.temperature, 1.0) if not greedy else request.temperature or 0.0,
            top_p=state.default("top_p", request.top_p, 1.0),
            top_k=state.default("top_k", request.top_k, 0),
            min_p=state.default("min_p", request.min_p, 0.0),
            repetition_penalty=state.default("repetition_penalty", request.repetition_penalty, 1.0),
            presence_penalty=state.default("presence_penalty", request.presence_penalty, 0.0),
            frequency_penalty=state.default("frequency_penalty", request.frequency_penalty, 0.0),
            logit_bias=request.biases(),
            seed=request.seed,
            stop=request.stops,
            stop_token_ids=_within(state, (*state.tokenizer.stop_ids(request.stops), *ends)),
            ignore_eos=bool(request.ignore_eos),
            logprobs=logprobs,
            n=_checked_n(state, request.n or 1),
            grammar=grammar,
        )
    except FerrumError as error:
        raise from_ferrum(error) from None


def _within(state: ServerState, ids: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(i for i in dict.fromkeys(ids) if i < state.backend.info.vocab_size)


def _checked_n(state: ServerState, n: int) -> int:
    if n > state.backend.info.max_queue:
        raise invalid(f"n must not exceed {state.backend.info.max_queue}", "n")
    return n


def text_options(state: ServerState, request: ChatRequest, *, uses_tools: bool, prompt: str) -> TextOptions:
    """How to read the answer to a chat."""
    form = state.tool_format
    if form is not None and not uses_tools and not form.drops:
        form = None
    start, end = state.text.reasoning_start, state.text.reasoning_end
    reasons = bool(start and end)
    return TextOptions(
        stops=request.stops,
        logprobs=bool(request.logprobs),
        reasoning=(start, end) if reasons else ("", ""),
        begins=opening(prompt, start, end) if reasons else Opening.UNKNOWN,
        tool_format=form,
        schemas=schemas(request.tools) if uses_tools else {},
        parallel_calls=request.parallel_tool_calls is not False,
        visible=state.marks if form or reasons else frozenset(),
    )


def schemas(tools: list[Tool] | None) -> dict[str, dict[str, Any]]:
    """Declared functions by name."""
    return {t.function.name: t.function.parameters or {} for t in tools or ()}
