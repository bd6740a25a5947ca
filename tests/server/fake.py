"""An engine for server tests: it answers with prepared token ids, at the speed that a test asks for."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence

from ferrum.engine.params import SamplingParams
from ferrum.engine.reports import EngineInfo, EngineStats, TokenEvent
from ferrum.errors import FerrumError

Reply = Callable[[Sequence[int], SamplingParams, int], list[int]]
EOS = 761


class FakeGeneration:
    def __init__(self, backend: FakeBackend, request_id: str, prompt: Sequence[int], params: SamplingParams) -> None:
        self.request_id = request_id
        self.open = set(range(params.n))
        self.events: asyncio.Queue[list[TokenEvent] | FerrumError] = asyncio.Queue()
        self._backend = backend
        self._task = asyncio.ensure_future(self._run(prompt, params))
        backend.live.add(self)

    async def batch(self) -> list[TokenEvent]:
        if self.events.empty() and not self.open:
            return []
        item = await self.events.get()
        if isinstance(item, FerrumError):
            raise item
        return item

    def abort(self, index: int | None = None) -> None:
        if self.open:
            self._backend.aborts.append((self.request_id, index))
        self.open = set() if index is None else self.open - {index}
        if not self.open:
            self._task.cancel()
            self._backend.live.discard(self)

    def fail(self, error: FerrumError) -> None:
        self.events.put_nowait(error)
        self.open.clear()
        self._task.cancel()
        self._backend.live.discard(self)

    async def _run(self, prompt: Sequence[int], params: SamplingParams) -> None:
        backend = self._backend
        refusal = backend.refusal(prompt, params)
        if refusal is not None:
            self.fail(refusal)
            return
        await asyncio.sleep(backend.prefill_seconds)
        replies = [backend.reply(prompt, params, i) for i in self.open]
        limit = params.max_tokens or backend.info.max_model_len - len(prompt)
        for at in itertools.count():
            await backend.pace(at)
            events = []
            for index in sorted(self.open):
                reply = replies[index]
                ended = at >= len(reply) and not params.ignore_eos
                token = EOS if ended else reply[at % len(reply)] if reply else 1
                reason = "stop" if ended else "length" if at + 1 >= limit else ""
                top = self._alternatives(token, params.logprobs or 0)
                logprob = -0.5 if params.logprobs is not None else None
                events.append(TokenEvent(self.request_id, index, token, reason, logprob, top, backend.cached_tokens))
            self.open -= {e.index for e in events if e.finish_reason}
            self.events.put_nowait(events)
            backend.tokens += len(events)
            if not self.open:
                self._backend.live.discard(self)
                return

    @staticmethod
    def _alternatives(token: int, count: int) -> tuple[tuple[int, float], ...]:
        """As an engine that samples the likeliest token gives them: that one first, then the first ids of the others."""
        others = [i for i in range(count + 1) if i != token][: count - 1]
        return ((token, -0.5), *((i, -1.0 - i) for i in others)) if count else ()


class FakeBackend:
    """``reply``: prompt, parameters, choice → token ids; the end token follows. ``token_seconds`` paces them."""

    def __init__(self, reply: Reply, *, vocab_size: int = 768, max_model_len: int = 4096) -> None:
        self.reply = reply
        self.token_seconds = 0.0
        self.prefill_seconds = 0.0
        self.stats_seconds = 0.0
        self.cached_tokens = 0
        self.tokens = 0
        self.max_running = 1000
        self.alive = True
        self.live: set[FakeGeneration] = set()
        self.aborts: list[tuple[str, int | None]] = []
        self.requests: list[tuple[list[int], SamplingParams]] = []
        self.salts: list[str] = []
        self._count = 0
        self.info = EngineInfo(
            model="fake",
            device="null",
            vocab_size=vocab_size,
            max_model_len=max_model_len,
            max_num_seqs=16,
            max_num_batched_tokens=512,
            max_queue=256,
            num_blocks=64,
            block_size=16,
            bytes_per_block=1024,
            weight_bytes=0,
            kv_bytes=65536,
            prefix_cache=True,
        )

    def generate(self, prompt: Sequence[int], params: SamplingParams, *, salt: str = "") -> FakeGeneration:
        if not self.alive:
            raise FerrumError("engine-died", "the engine process ended unexpectedly")
        self._count += 1
        self.requests.append((list(prompt), params))
        self.salts.append(salt)
        return FakeGeneration(self, f"r{self._count}", prompt, params)

    def refusal(self, prompt: Sequence[int], params: SamplingParams) -> FerrumError | None:
        """As the engine's own checks."""
        if not prompt:
            return FerrumError("prompt-empty", "the prompt has no tokens", "prompt", "send at least one token")
        if max(prompt) >= self.info.vocab_size:
            return FerrumError("invalid-token", "token ids must be smaller", "prompt")
        largest, where = params.largest_token_id()
        if largest >= self.info.vocab_size:
            return FerrumError("invalid-parameter", f"{where} names token {largest}", where)
        room = self.info.max_model_len - len(prompt)
        if room < 1:
            return FerrumError("prompt-too-long", f"the prompt has {len(prompt)} tokens", "prompt")
        if (params.max_tokens or 0) > room:
            return FerrumError("request-too-long", f"{len(prompt)} and {params.max_tokens} are too many", "max_tokens")
        if len(self.live) > self.max_running:
            return FerrumError("queue-full", "256 requests are waiting", "", "try again later")
        return None

    async def pace(self, at: int) -> None:
        if self.token_seconds or at % 64 == 0:
            await asyncio.sleep(self.token_seconds)

    async def stats(self) -> EngineStats:
        await asyncio.sleep(self.stats_seconds)
        names = [name for name in EngineStats.__struct_fields__ if name != "pools"]
        return EngineStats(**{**dict.fromkeys(names, 0), "active_decode": len(self.live), "blocks_total": 64})

    async def close(self) -> None:
        self.alive = False
        for generation in list(self.live):
            generation.fail(FerrumError("engine-closed", "the engine was closed"))
