"""Grammars made elsewhere, within bounds, and remembered."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from ferrum.errors import FerrumError
from ferrum.structured.schema import refused
from ferrum.structured.wish import MAX_CHARS
from ferrum.text.bounded_process import BoundedProcess

MAX_ENTRIES = 256
MAX_BYTES = 16 << 20
OVER = FerrumError("grammar-limit", "the grammar takes too much time or memory", "structured", "make it smaller")


class GrammarProcess:
    """Makes the texts of grammars. The process starts with the first one; ``special``: the model's special tokens by their text.
    Safe to use from several threads, which take turns."""

    def __init__(self, special: Mapping[str, int]) -> None:
        self._process = BoundedProcess("ferrum.structured.worker", {"special": dict(special)}, OVER)
        self._lock = threading.Lock()
        self._known: OrderedDict[bytes, str | FerrumError] = OrderedDict()
        self._bytes = 0

    def make(self, plan: Mapping[str, Any]) -> str:
        """The text of a plan's grammar, for ``masks``. Blocks for up to a second. Raises FerrumError: "grammar-refused" says what
        of it and where, "grammar-limit", "grammar-missing"."""
        text = json.dumps(plan, ensure_ascii=False)
        if len(text) > MAX_CHARS:
            raise refused(f"the grammar has more than {MAX_CHARS} characters")
        key = sha256(text.encode("utf-8", "surrogatepass")).digest()
        with self._lock:
            known = self._known.get(key)
            if known is not None:
                self._known.move_to_end(key)
        if known is None:
            known = self._make(plan)
            self._remember(key, known)
        if isinstance(known, FerrumError):
            raise FerrumError(known.code, known.what, known.where, known.next_step)
        return known

    def close(self) -> None:
        self._process.close()

    def _make(self, plan: Mapping[str, Any]) -> str | FerrumError:
        _check_installed()
        try:
            return str(self._process.ask(plan)["grammar"])
        except FerrumError as error:
            return error

    def _remember(self, key: bytes, made: str | FerrumError) -> None:
        with self._lock:
            self._known[key] = made
            self._bytes += _size(made)
            while len(self._known) > MAX_ENTRIES or self._bytes > MAX_BYTES:
                self._bytes -= _size(self._known.popitem(last=False)[1])


def _size(made: str | FerrumError) -> int:
    return len(made) if isinstance(made, str) else 0


def _check_installed() -> None:
    from importlib.util import find_spec

    if find_spec("llguidance") is None:
        raise FerrumError(
            "grammar-missing", "structured answers need the package llguidance", "structured", "pip install llguidance"
        )
