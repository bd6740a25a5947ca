"""One sequence of tokens on its way through the engine: what is known, what is computed, which blocks hold it."""

from __future__ import annotations

import enum
import time
from array import array
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ferrum.engine.params import SamplingParams
from ferrum.engine.prefix_cache import NO_KEYS, Keys
from ferrum.engine.request_inputs import NO_INPUTS, Inputs
from ferrum.engine.thinking import Thinking
from ferrum.errors import FerrumError
from ferrum.pack.sampling import BANNED_LOGIT


class State(enum.Enum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class TokenMask(Protocol):
    """Which tokens may come next: a grammar's state for one sequence. ``error``: it cannot go on; the request ends with it."""

    error: FerrumError | None

    @property
    def ready(self) -> bool:
        """Whether the next mask is there, or an ``error``."""

    def fill(self, row: NDArray[np.uint32]) -> None:
        """Write the allowed tokens as bits (token v: bit ``v & 31`` of word ``v >> 5``); at least one is allowed."""

    def allows(self, token: int) -> bool:
        """Whether ``token`` may come next, by the mask that is there."""

    def accept(self, token: int) -> None:
        """Advance by a token that was sampled or forced. The mask after it is there after ``MaskMaker.begin``."""

    def forced(self) -> list[int]:
        """Tokens that must come next, since nothing else may; an end token at the end. Empty where there is a choice."""


class MaskMaker(Protocol):
    """Makes masks from the text of a grammar, beside the engine's thread."""

    def __call__(self, grammar: str) -> Any:
        """A ``TokenMask`` at the beginning of ``grammar``, perhaps not ready yet. Raises FerrumError."""

    def begin(self, masks: Any) -> None:
        """Find the next masks of these ``TokenMask``, which have accepted a token."""

    def wait(self, masks: Any, seconds: float) -> None:
        """Until these are ready, at most for ``seconds``."""

    def close(self) -> None: ...


class TokenCounts:
    """Distinct tokens and how often each is in the output, as arrays that a step copies without a loop."""

    __slots__ = ("_index", "count", "tokens")

    def __init__(self) -> None:
        self.tokens = array("i")
        self.count = array("i")
        self._index: dict[int, int] = {}

    def add(self, token: int, times: int) -> None:
        place = self._index.get(token)
        if place is None:
            self._index[token] = len(self.tokens)
            self.tokens.append(token)
            self.count.append(times)
        else:
            self.count[place] += times


class Sequence:
    """``tokens`` are prompt and output; the first ``num_computed`` have their keys and values in ``blocks``.

    ``arrival`` orders sequences; ``max_tokens`` is resolved; ``stop_ids`` end the output (they are its last token).
    ``salt`` None: the blocks are not shared. ``keys``: what blocks hold beside tokens, for the prefix cache. ``leader``: the
    first choice of the same request, whose prompt is shared. ``tables``: its places in each group of states.
    """

    __slots__ = (
        "arrival", "ban_tokens", "bias_tokens", "bias_values", "blocks", "cached_tokens", "chain", "counts", "index", "inputs",
        "inputs_digest", "keys", "leader", "mask", "max_tokens", "num_computed", "num_prompt", "params", "queue_us", "queued_at",
        "request_id", "salt", "seed", "state", "stop_ids", "tables", "thinking", "tokens",
    )  # fmt: skip

    def __init__(
        self,
        request_id: str,
        index: int,
        prompt: array[int],
        params: SamplingParams,
        *,
        arrival: int,
        seed: int,
        max_tokens: int,
        stop_ids: frozenset[int],
        salt: bytes | None,
        keys: Keys = NO_KEYS,
        inputs: Inputs = NO_INPUTS,
        inputs_digest: bytes = b"",
        leader: Sequence | None = None,
        mask: TokenMask | None = None,
    ) -> None:
        self.request_id = request_id
        self.index = index
        self.tokens = array("i", prompt)
        self.num_prompt = len(prompt)
        self.params = params
        self.arrival = arrival
        self.seed = seed
        self.max_tokens = max_tokens
        self.stop_ids = stop_ids
        self.salt = salt
        self.keys = keys
        self.inputs = inputs
        self.inputs_digest = inputs_digest
        self.leader = leader
        self.mask = mask
        self.state = State.WAITING
        self.queued_at = time.monotonic()
        self.queue_us = -1  # until it has a place for the first time
        self.num_computed = 0
        self.cached_tokens = -1  # prompt tokens found in the prefix cache at the first admission; -1 before it
        self.blocks = array("i")
        self.tables: list[array[int]] = []
        self.chain: list[bytes] = []
        self.bias_tokens = array("i", params.logit_bias.keys())
        self.bias_values = array("f", params.logit_bias.values())
        self.ban_tokens = array("i", sorted(stop_ids) if params.min_tokens else ())
        self.thinking = Thinking(params.thinking) if params.thinking is not None else None
        self.counts = TokenCounts()
        if params.repetition_penalty != 1.0:
            for token in prompt:
                self.counts.add(token, 0)

    @property
    def num_output(self) -> int:
        return len(self.tokens) - self.num_prompt

    @property
    def num_pending(self) -> int:
        """Tokens without keys and values: 1 in decode, more in prefill."""
        return len(self.tokens) - self.num_computed

    @property
    def num_banned(self) -> int:
        banned = len(self.ban_tokens)
        return banned if banned and self.num_output < self.params.min_tokens else 0

    @property
    def masked_out(self) -> bool:
        """Whether its mask is not there yet, so that no step can have it."""
        return self.mask is not None and not self.mask.ready

    @property
    def steady(self) -> bool:
        """Whether the row after the next token can be described before that token is known, and will be wanted."""
        output = self.num_output
        settled = self.mask is None and not self.params.penalized and not (self.ban_tokens and output < self.params.min_tokens)
        spent = self.thinking is not None and self.thinking.spent  # then another token stands where one is being sampled
        return settled and not spent and output + 1 < self.max_tokens

    def append(self, token: int) -> str:
        """Take a sampled token; returns the finish reason: "" (goes on), "stop" (a stop token) or "length"."""
        self.tokens.append(token)
        if self.params.penalized:
            self.counts.add(token, 1)
        if token in self.stop_ids:
            return "stop"
        if self.num_output >= self.max_tokens:
            return "length"
        if self.mask is not None:
            self.mask.accept(token)
        return ""

    def fill_bias(self, tokens: NDArray[np.int32], values: NDArray[np.float32], at: int) -> int:
        """Write this sequence's bias entries from index ``at``; returns the index after them."""
        end = at + len(self.bias_tokens)
        if end > at:
            tokens[at:end] = self.bias_tokens
            values[at:end] = self.bias_values
        banned = self.num_banned
        if banned:
            tokens[end : end + banned] = self.ban_tokens
            values[end : end + banned] = BANNED_LOGIT
        return end + banned
