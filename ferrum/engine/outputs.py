"""What ``LLM`` returns: outputs of whole prompts, and pieces of a stream."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TokenLogprob:
    """Of the raw distribution. ``top``: (token, logprob), descending, as many as asked for."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Completion:
    """One choice. ``token_ids`` end with the stop token if there was one; ``text`` has neither it nor a stop string.

    ``finish_reason``: "stop" or "length". ``logprobs``: one per token, None if not asked for.
    """

    index: int
    text: str
    token_ids: list[int]
    finish_reason: str
    logprobs: list[TokenLogprob] | None


@dataclass(frozen=True)
class Output:
    """All choices of one prompt; ``text``, ``token_ids``, ``finish_reason`` and ``logprobs`` are those of the first."""

    prompt_token_ids: list[int]
    cached_tokens: int
    choices: list[Completion]

    @property
    def text(self) -> str:
        return self.choices[0].text

    @property
    def token_ids(self) -> list[int]:
        return self.choices[0].token_ids

    @property
    def finish_reason(self) -> str:
        return self.choices[0].finish_reason

    @property
    def logprobs(self) -> list[TokenLogprob] | None:
        return self.choices[0].logprobs


@dataclass(frozen=True)
class Piece:
    """What one step added to choice ``index``: ``text`` may be empty. The last piece of a choice has a finish reason."""

    index: int
    text: str
    token_ids: list[int]
    finish_reason: str = ""
    logprobs: list[TokenLogprob] | None = None

    def __str__(self) -> str:
        return self.text
