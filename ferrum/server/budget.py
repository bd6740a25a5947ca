"""How much one request may ask for: what its answer holds is prompts × n × tokens × log-probabilities."""

from __future__ import annotations

from ferrum.server.errors import invalid

MAX_TOKENS = 1 << 24  # of an answer: some 100 MB as text
MAX_SCORES = 1 << 18  # log-probabilities of an answer, alternatives included: some 30 MB as JSON


def cap_tokens(asked: int | None, room: int, *, sequences: int, logprobs: int | None, field: str = "max_tokens") -> int | None:
    """``max_tokens`` of a request; when it names none, what the budget leaves of the context (``room``).

    None: the context is the limit. Raises ApiError when more is asked for than an answer may hold.
    """
    scores = 1 if logprobs is None else logprobs + 1
    most = max(1, (MAX_TOKENS if logprobs is None else MAX_SCORES) // (max(1, sequences) * scores))
    if asked is None:
        return most if most < room else None
    if asked > most and room > most:
        parts = "prompts, choices, tokens and log-probabilities" if logprobs is not None else "prompts, choices and tokens"
        raise invalid(f"{parts} multiply to more than an answer may hold; {field} may be {most} here", field)
    return asked
