"""Whose key a request carries, and how much of its limits is left."""

from __future__ import annotations

import hmac
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from sanic import Request

from ferrum.server.errors import ApiError
from ferrum.server.keys import Key

MINUTE = 60.0


def find_key(request: Request, keys: Sequence[Key]) -> Key | None:
    """The key that comes as a bearer token or as x-api-key, each given once; every wrong one takes the same time."""
    bearers = request.headers.getall("authorization", [])
    plain = request.headers.getall("x-api-key", [])
    given = [plain[0]] if len(plain) == 1 else []
    if len(bearers) == 1:
        scheme, _, token = bearers[0].partition(" ")
        given += [token] if scheme.lower() == "bearer" else []
    found = None
    for key in keys:
        if any([_same(text, key.secret) for text in given]):  # a list: all of them are compared
            found = key
    return found


def _same(given: str, secret: str) -> bool:
    return hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), secret.encode())


class Budget:
    """So many a minute, of which a minute's worth may be used at once. ``spend`` may overdraw: it is paid back first."""

    def __init__(self, per_minute: int, clock: Callable[[], float]) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._level = float(per_minute)
        self._seen = clock()

    def left(self) -> float:
        now = self._clock()
        self._level = min(self.per_minute, self._level + (now - self._seen) * self.per_minute / MINUTE)
        self._seen = now
        return self._level

    def seconds_until(self, level: float) -> float:
        return max(0.0, (level - self.left()) * MINUTE / self.per_minute) if self.per_minute else 0.0

    def spend(self, amount: float) -> None:
        if self.per_minute:
            self.left()
            self._level -= amount


class Meter:
    """What one key has used. Raises ApiError 429, which says when to come again."""

    def __init__(self, key: Key, clock: Callable[[], float] = time.monotonic) -> None:
        self.key = key
        self.requests = Budget(key.requests_per_minute, clock)
        self.tokens = Budget(key.tokens_per_minute, clock)
        self.running = 0

    def count_request(self) -> None:
        wait = self.requests.seconds_until(1)
        if wait:
            raise _spent("requests", self.key.requests_per_minute, wait)
        self.requests.spend(1)

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """A request that generates runs inside; ``spend`` takes its tokens afterwards."""
        limit = self.key.concurrent
        if limit and self.running >= limit:
            raise ApiError(429, f"this key may have {limit} requests at once", code="rate_limit_exceeded")
        wait = self.tokens.seconds_until(1)
        if wait:
            raise _spent("tokens", self.key.tokens_per_minute, wait)
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1

    def headers(self) -> dict[str, str]:
        """As OpenAI tells its limits."""
        found = {}
        for name, budget in (("requests", self.requests), ("tokens", self.tokens)):
            if budget.per_minute:
                found[f"x-ratelimit-limit-{name}"] = str(budget.per_minute)
                found[f"x-ratelimit-remaining-{name}"] = str(max(0, int(budget.left())))
                found[f"x-ratelimit-reset-{name}"] = f"{math.ceil(budget.seconds_until(budget.per_minute))}s"
        return found


def _spent(what: str, limit: int, wait: float) -> ApiError:
    return ApiError(429, f"this key may have {limit} {what} a minute", code="rate_limit_exceeded", retry_after=wait)


def make_meters(keys: Sequence[Key]) -> Mapping[str, Meter]:
    return {key.name: Meter(key) for key in keys}
