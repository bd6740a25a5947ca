"""The process that makes grammars: ``python -m ferrum.structured.worker``.

The first request names the special tokens that grammars may hold, each other one is a plan (``grammar.plan``) and is answered
with the grammar's text. A schema or a regex is a program that anyone may send: whatever it takes, it takes here first.
"""

from __future__ import annotations

import sys
from typing import Any

from ferrum.errors import FerrumError
from ferrum.structured.schema import refused
from ferrum.text.bounded_worker import Bounds, serve

BOUNDS = Bounds(headroom=192 << 20, bytes_per_byte=64, seconds=0.7, bytes_per_second=8 << 20, code="grammar-limit")


class Worker:
    """Grammars over a vocabulary of single bytes and the model's special tokens: enough to try them."""

    def __init__(self) -> None:
        self._tokenizer: Any = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        from ferrum.structured import library

        if "special" in request:
            self._tokenizer = _bytes_vocabulary(request["special"])
            return {}
        try:
            return {"grammar": library.combined(request["main"], request["parts"], self._tokenizer)}
        except (FerrumError, MemoryError, RecursionError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the library's panics are not Exceptions
            raise refused(f"the grammar is refused: {type(error).__name__}") from None


def _bytes_vocabulary(special: dict[str, int]) -> Any:
    from ferrum.structured import library

    first = max(special.values(), default=-1) + 1
    tokens = [b""] * first + [bytes([b]) for b in range(256)] + [b"<end>"]
    for text, token in special.items():
        tokens[token] = text.encode("utf-8", "surrogatepass")
    end = len(tokens) - 1
    return library.vocabulary(tokens, {*special.values(), end}, [end], lambda text: [first + b for b in text.encode()])


def main() -> int:
    from ferrum.structured import library  # noqa: F401  # before the address space in use is measured

    return serve(Worker().answer, BOUNDS)


if __name__ == "__main__":
    sys.exit(main())
