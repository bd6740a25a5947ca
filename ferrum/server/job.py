"""One HTTP request's work in the engine: its prompts, its choices, and the deltas that come out of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

from ferrum.engine.params import SamplingParams
from ferrum.engine.reports import TokenEvent
from ferrum.errors import FerrumError
from ferrum.server.backend import Backend, BackendGeneration
from ferrum.server.choice import Choice, Delta, TextOptions
from ferrum.server.metrics import Metrics
from ferrum.text.tokenizer import Tokenizer


@dataclass
class _Prompt:
    """A running prompt, the task that waits for its next tokens, and when the last ones came (per choice)."""

    first_choice: int
    generation: BackendGeneration
    waiting: asyncio.Task[list[TokenEvent]] | None
    last: dict[int, float]


class Job:
    """``async with Job(...) as job``, then ``next`` until ``done``. Leaving it frees everything in the engine.

    Choice ``i * n + j`` of the answer is choice j of prompt i. ``salt``: requests of another one share no cached prefix with it.
    """

    def __init__(
        self,
        backend: Backend,
        tokenizer: Tokenizer,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        options: TextOptions,
        metrics: Metrics,
        *,
        continues: bool = False,
        salt: str = "",
    ) -> None:
        self.prompt_tokens = sum(len(p) for p in prompts)
        self.cached_tokens = 0
        self.first_token_seconds: float | None = None
        self._backend = backend
        self._prompts = prompts
        self._salt = salt
        self._params = params
        self._metrics = metrics
        self._running: list[_Prompt] = []
        self._started = time.perf_counter()
        self._cached: set[int] = set()
        self.choices = [
            Choice(i * params.n + j, tokenizer, options, prompt if continues else ())
            for i, prompt in enumerate(prompts)
            for j in range(params.n)
        ]

    @property
    def done(self) -> bool:
        return all(c.finish_reason for c in self.choices)

    @property
    def completion_tokens(self) -> int:
        return sum(c.num_tokens for c in self.choices)

    @property
    def reasoning_tokens(self) -> int:
        return sum(c.num_reasoning_tokens for c in self.choices)

    async def __aenter__(self) -> Job:
        """Send the prompts. Raises FerrumError when the engine takes none."""
        self._metrics.requests += 1
        try:
            for i, prompt in enumerate(self._prompts):
                generation = self._backend.generate(prompt, self._params, salt=self._salt)
                self._running.append(_Prompt(i * self._params.n, generation, None, {}))
        except BaseException:
            self.abort()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.abort()
        if self.first_token_seconds is not None:  # what was refused took no time and would hide what others take
            self._metrics.request_duration.observe(time.perf_counter() - self._started)
            self._metrics.prompt_tokens.observe(self.prompt_tokens)
            self._metrics.generation_tokens.observe(self.completion_tokens)

    def abort(self) -> None:
        """Free everything in the engine; safe to call again."""
        for prompt in self._running:
            if prompt.waiting is not None:
                prompt.waiting.cancel()
            prompt.generation.abort()
        self._running.clear()

    async def next(self, timeout: float) -> list[Delta]:
        """What is new, in the order of its making; empty after ``timeout`` seconds of silence. Raises FerrumError."""
        tasks = {self._task(p): p for p in self._running}
        if not tasks:
            raise FerrumError("engine-failed", "the engine ended a request too early")
        finished, _ = await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        deltas: list[Delta] = []
        for task in finished:
            prompt = tasks[task]
            prompt.waiting = None
            events = task.result()
            if not events:
                self._running.remove(prompt)
                continue
            self._take(prompt, events, deltas)
        return deltas

    def _task(self, prompt: _Prompt) -> asyncio.Task[list[TokenEvent]]:
        if prompt.waiting is None:
            prompt.waiting = asyncio.ensure_future(prompt.generation.batch())
        return prompt.waiting

    def _take(self, prompt: _Prompt, events: list[TokenEvent], deltas: list[Delta]) -> None:
        now = time.perf_counter()
        for event in events:
            choice = self.choices[prompt.first_choice + event.index]
            if choice.finish_reason:
                continue
            self._measure(prompt, event, now)
            if prompt.first_choice not in self._cached:
                self._cached.add(prompt.first_choice)
                self.cached_tokens += event.cached_tokens
            delta = choice.feed(event)
            if delta.finish_reason:
                self._end(prompt, event, choice, now)
            if delta:
                deltas.append(delta)
        if all(c.finish_reason for c in self.choices[prompt.first_choice : prompt.first_choice + self._params.n]):
            self._running.remove(prompt)

    def _measure(self, prompt: _Prompt, event: TokenEvent, now: float) -> None:
        last = prompt.last.get(event.index)
        if last is not None:
            self._metrics.itl.observe(now - last)
        elif not prompt.last:
            self._metrics.ttft.observe(now - self._started)
            if self.first_token_seconds is None:
                self.first_token_seconds = now - self._started
        if last is None:
            self._metrics.queue.observe(event.queue_us / 1e6)
        prompt.last[event.index] = now
        prompt.last.setdefault(-1 - event.index, now)  # the first token, for the mean

    def _end(self, prompt: _Prompt, event: TokenEvent, choice: Choice, now: float) -> None:
        if choice.stopped_by_text and not event.finish_reason:
            prompt.generation.abort(event.index)
        if choice.num_tokens > 1:
            self._metrics.tpot.observe((now - prompt.last[-1 - event.index]) / (choice.num_tokens - 1))
