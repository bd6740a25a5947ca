"""Answers that later requests may build on, kept in memory for as long as there is room."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from threading import RLock
from typing import Any

MAX_ANSWERS = 1024
MAX_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class Kept:
    """``messages``: the conversation up to and with the answer, as a chat has it. ``items``: the answer's own, by id.
    ``owner``: the key's name; answers of another one are not found."""

    messages: list[dict[str, Any]]
    items: dict[str, dict[str, Any]]
    answer: bytes
    size: int
    owner: str = ""


class KeptAnswers:
    """The answers used last, by id; beyond the bounds the oldest go. Safe to use from several threads."""

    def __init__(self, max_answers: int = MAX_ANSWERS, max_bytes: int = MAX_BYTES) -> None:
        self._max_answers = max_answers
        self._max_bytes = max_bytes
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._bytes = 0
        self._lock = RLock()

    def put(self, name: str, kept: Kept) -> None:
        with self._lock:
            self.drop(name)
            self._kept[name] = kept
            self._bytes += kept.size
            while self._kept and (len(self._kept) > self._max_answers or self._bytes > self._max_bytes):
                self.drop(next(iter(self._kept)))

    def get(self, name: str, owner: str = "") -> Kept | None:
        with self._lock:
            found = self._kept.get(name)
            if found is None or found.owner != owner:
                return None
            self._kept.move_to_end(name)
            return found

    def item(self, name: str, owner: str = "") -> dict[str, Any] | None:
        """An item of any answer that is kept, the latest first."""
        with self._lock:
            found = (k.items[name] for k in reversed(self._kept.values()) if name in k.items and k.owner == owner)
            return next(found, None)

    def drop(self, name: str) -> bool:
        with self._lock:
            found = self._kept.pop(name, None)
            if found is not None:
                self._bytes -= found.size
            return found is not None

    def __len__(self) -> int:
        return len(self._kept)
