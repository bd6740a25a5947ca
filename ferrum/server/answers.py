"""The objects that answers consist of, as OpenAI's API has them. UNSET fields are left out."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType


class Answer(msgspec.Struct, kw_only=True):
    """Base of everything that is sent."""


class TokenDetails(Answer, kw_only=True):
    cached_tokens: int = 0


class AnswerDetails(Answer, kw_only=True):
    reasoning_tokens: int = 0


class Usage(Answer, kw_only=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: TokenDetails
    completion_tokens_details: AnswerDetails


def make_usage(prompt_tokens: int, completion_tokens: int, cached_tokens: int, reasoning_tokens: int) -> Usage:
    return Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
        prompt_tokens_details=TokenDetails(cached_tokens=cached_tokens),
        completion_tokens_details=AnswerDetails(reasoning_tokens=reasoning_tokens),
    )


class Logprob(Answer, kw_only=True):
    """One token; ``bytes`` are its UTF-8 bytes, which may be a part of a character only."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(Logprob, kw_only=True):
    top_logprobs: list[Logprob]


class ChatLogprobs(Answer, kw_only=True):
    """``content``: TokenLogprob, encoded one by one."""

    content: list[Any]
    refusal: None = None


class CompletionLogprobs(Answer, kw_only=True):
    """``top_logprobs``: objects of token and log-probability, encoded one by one."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[Any]
    text_offset: list[int]


class FunctionDelta(Answer, kw_only=True):
    name: str | UnsetType = UNSET
    arguments: str = ""


class CallDelta(Answer, kw_only=True):
    """A piece of a tool call; in whole answers ``index`` is left out."""

    index: int | UnsetType = UNSET
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET
    function: FunctionDelta


class ChatMessage(Answer, kw_only=True):
    role: str | UnsetType = UNSET
    content: str | None | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[CallDelta] | UnsetType = UNSET


class ChatChoice(Answer, kw_only=True):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None


class ChatChunkChoice(Answer, kw_only=True):
    index: int
    delta: ChatMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None


class TextChoice(Answer, kw_only=True):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None


class Completion(Answer, kw_only=True):
    """A whole answer or a chunk of a stream; ``object`` says which."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[Any]
    usage: Usage | None | UnsetType = UNSET


class Model(Answer, kw_only=True):
    id: str
    object: str = "model"
    created: int
    owned_by: str = "ferrum"
    max_model_len: int


class ModelList(Answer, kw_only=True):
    object: str = "list"
    data: list[Model]
