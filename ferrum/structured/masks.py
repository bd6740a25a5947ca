"""The engine's side of grammars: which tokens may come next, computed beside its steps.

A grammar is compiled once, in a thread, and copied for each sequence. Masks are computed in threads from the moment that a token
is known; the library gives way to the engine's thread while it works.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ferrum.errors import FerrumError
from ferrum.structured.schema import refused

if TYPE_CHECKING:  # threads and what they need are loaded with the first grammar
    from concurrent.futures import Future, ThreadPoolExecutor

    from ferrum.text.tokenizer import Tokenizer

MAX_COMPILED = 64
STACK_BYTES = 64 << 20  # what the worker could recurse into on its own stack fits
_THREADS = min(4, os.cpu_count() or 1)


class _Compiled:
    """A grammar at its beginning, with its first mask."""

    def __init__(self, matcher: Any, first: NDArray[np.uint32]) -> None:
        self.matcher = matcher
        self.first = first


class GrammarMask:
    """The state of a grammar for one sequence; a ``ferrum.engine.sequence.TokenMask``."""

    def __init__(self, compiled: Future[_Compiled], ends: Sequence[int]) -> None:
        self.error: FerrumError | None = None
        self._compiled: Future[_Compiled] | None = compiled
        self._ends = ends
        self._matcher: Any = None
        self._row: NDArray[np.uint32] | None = None
        self._job: Future[Any] = compiled

    @property
    def ready(self) -> bool:
        """Whether ``fill`` has nothing to wait for, or there is an ``error``."""
        if not self._job.done():
            return False
        if self._compiled is not None:
            self._begin(self._compiled)
        return True

    def fill(self, row: NDArray[np.uint32]) -> None:
        assert self.ready and self._row is not None
        row[:] = self._row[: row.size]  # theirs may have a word more

    def allows(self, token: int) -> bool:
        """Whether ``token`` may come next, by the mask that was computed last."""
        assert self._row is not None
        return bool(self._row[token // 32] >> (token % 32) & 1)

    def accept(self, token: int) -> None:
        if not self._matcher.consume_token(token):
            self.error = _failed(self._matcher.get_error())
        self._row = None

    def forced(self) -> list[int]:
        """The tokens that must come next, when there is one way to go on; an end token when there is none."""
        if self.error is not None:
            return []
        if self._matcher.is_stopped():
            return [self._ends[0]]
        tokens: list[int] = self._matcher.compute_ff_tokens()
        return tokens

    def compute(self) -> None:
        """Find the next mask. Runs in a thread; nothing else is called meanwhile."""
        if self.error is not None:
            return
        row = np.frombuffer(self._matcher.compute_bitmask(), np.uint32)
        if self._matcher.is_error() or not row.any():
            self.error = _failed(self._matcher.get_error())
        self._row = row

    def _begin(self, compiled: Future[_Compiled]) -> None:
        self._compiled = None
        error = compiled.exception()
        if error is not None:
            self.error = error if isinstance(error, FerrumError) else _failed(type(error).__name__)
            return
        made = compiled.result()
        self._matcher, self._row = made.matcher.deep_copy(), made.first


def _failed(why: str) -> FerrumError:
    return FerrumError("grammar-failed", f"the grammar could not be followed: {why or 'nothing may come next'}", "structured")


class GrammarMasks:
    """A ``ferrum.engine.sequence.MaskMaker`` over one model's vocabulary. ``tokenizer`` is called when the first grammar comes.
    ``ends``: ids that end an answer."""

    def __init__(self, tokenizer: Callable[[], Tokenizer], vocab_size: int, ends: Iterable[int]) -> None:
        self._make_tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._ends = sorted(i for i in ends if i < vocab_size)
        self._known: OrderedDict[bytes, Future[_Compiled]] = OrderedDict()
        self._compiler: ThreadPoolExecutor | None = None
        self._workers: ThreadPoolExecutor | None = None
        self._tokenizer: Any = None

    def __call__(self, grammar: str) -> GrammarMask:
        """A new state at the beginning of ``grammar``, ready when it is compiled. Raises FerrumError when there can be none."""
        if not self._ends:
            raise refused("the model has no end token, so no answer could end")
        key = sha256(grammar.encode("utf-8", "surrogatepass")).digest()
        compiled = self._known.get(key)
        if compiled is None:
            compiled = self._known[key] = self._start().submit(self._compile, grammar)
            if len(self._known) > MAX_COMPILED:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return GrammarMask(compiled, self._ends)

    def begin(self, masks: Sequence[GrammarMask]) -> None:
        """Compute the next masks of sequences that took a token, in threads."""
        assert self._workers is not None
        for first in range(min(len(masks), _THREADS)):
            mine = masks[first::_THREADS]
            job = self._workers.submit(_compute_all, mine)
            for mask in mine:
                mask._job = job

    def wait(self, masks: Iterable[GrammarMask], seconds: float) -> None:
        """Until all are ready, at most for ``seconds``."""
        jobs = {mask._job for mask in masks if not mask._job.done()}
        if jobs:
            from concurrent.futures import wait

            wait(jobs, seconds)

    def close(self) -> None:
        for pool in (self._compiler, self._workers):
            if pool is not None:
                pool.shutdown(wait=True, cancel_futures=True)

    def _start(self) -> ThreadPoolExecutor:
        if self._compiler is None:
            from concurrent.futures import ThreadPoolExecutor

            before = threading.stack_size(STACK_BYTES)
            try:
                self._compiler = ThreadPoolExecutor(1, "grammar")
                self._compiler.submit(int).result()  # its thread starts here
            finally:
                threading.stack_size(before)
            self._workers = ThreadPoolExecutor(_THREADS, "mask")
        return self._compiler

    def _compile(self, grammar: str) -> _Compiled:
        from ferrum.structured import library

        if self._tokenizer is None:
            self._tokenizer = _vocabulary(self._make_tokenizer(), self._vocab_size, self._ends)
        matcher = library.matcher(grammar, self._tokenizer)
        first = np.frombuffer(matcher.compute_bitmask(), np.uint32)
        if matcher.is_error() or not first.any():
            raise _failed(matcher.get_error())
        return _Compiled(matcher, first)


def _compute_all(masks: Sequence[GrammarMask]) -> None:
    for mask in masks:
        mask.compute()


def _vocabulary(tokenizer: Tokenizer, vocab_size: int, ends: Sequence[int]) -> Any:
    """Ids that the tokenizer does not know (a padded vocabulary) stand for nothing and are never allowed."""
    from ferrum.structured import library

    tokens = [tokenizer.token_bytes(i) for i in range(vocab_size)]
    special = {*(i for i in tokenizer.special_ids if i < vocab_size), *ends}
    encode = tokenizer.encode
    return library.vocabulary(tokens, special, ends, lambda text: encode(text, special=False))
