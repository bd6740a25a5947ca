"""The token ids of a request, checked against the model's vocabulary."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from ferrum.errors import FerrumError


def checked_tokens(prompt: Sequence[int], vocab_size: int) -> array[int]:
    """A copy of ``prompt``, which has one token at least. Raises FerrumError "invalid-token"."""
    try:
        tokens = array("i", prompt)
    except (TypeError, OverflowError):
        raise FerrumError("invalid-token", "token ids must be whole numbers", "prompt") from None
    if min(tokens) < 0 or max(tokens) >= vocab_size:
        raise FerrumError("invalid-token", f"token ids must be from 0 to {vocab_size - 1}", "prompt")
    return tokens
