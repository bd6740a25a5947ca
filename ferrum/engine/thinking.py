"""A bound on how long a sequence reasons: when it is spent, the mark that ends the reasoning takes the place of the next token.

It is the engine that puts it there, after the device has sampled, so that no device has to know of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from ferrum.errors import FerrumError


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinkingBudget:
    """``tokens``: most between the marks. ``start``, ``end``: ids of the marks. ``opened``: the prompt ends with ``start``."""

    tokens: int
    start: int
    end: int
    opened: bool = False

    def __post_init__(self) -> None:
        if min(self.tokens, self.start, self.end) < 0:
            raise FerrumError("invalid-parameter", "thinking must have numbers from 0 on", "thinking")


class Thinking:
    """How much one sequence has left. Reasoning that has ended does not begin again."""

    __slots__ = ("_budget", "_left", "_open", "_over")

    def __init__(self, budget: ThinkingBudget) -> None:
        self._budget = budget
        self._left = budget.tokens
        self._open = budget.opened
        self._over = False

    @property
    def spent(self) -> bool:
        """Whether the next token is the closing mark, whatever is sampled."""
        return self._open and self._left <= 0

    @property
    def end(self) -> int:
        return self._budget.end

    def take(self, token: int, *, may_close: bool = True) -> int:
        """The token that stands where ``token`` was sampled. ``may_close``: whether the mark may come here, which a grammar
        denies within a character; then the rest of that comes first."""
        if self.spent and may_close:
            token = self._budget.end
        if token == self._budget.end:
            self._open, self._over = False, True
        elif self._open:
            self._left -= 1
        elif token == self._budget.start and not self._over:
            self._open = True
        return token
