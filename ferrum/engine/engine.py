"""The engine: requests in, tokens out, one step at a time, on one thread.

Life of a request: ``add`` checks it against the limits and queues it; ``step`` schedules, fills the device's arrays, runs
the device, takes the sampled tokens and returns one event per token; the last event of a choice has a finish reason.

What ends a choice here is what can be seen in tokens: end and stop tokens, ``max_tokens``, the context's length. Stop
strings are seen by whoever turns tokens into text: it calls ``abort`` (which emits no event) and reports "stop" itself.
A token that a grammar leaves no choice about is appended without a step: it is computed with the next sampled one.

Between two steps ``abort`` takes effect at once, so no further token is reported and the blocks are free. A consumer in
another process may find some more events under way; it drops events of choices that it has ended.

On a device whose steps overlap, a step that needs no token of the one under way is started before that one has ended, so the
device goes from one to the next while the engine works. A choice that ends meanwhile has wasted a row, whose keys and values
land in blocks that are free again: whoever gets them writes in a later step, and the device keeps the order of steps.
"""

from __future__ import annotations

import secrets
from array import array
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ferrum.devices.base import Executor, FillingExecutor, OverlappingExecutor, StepBuffers
from ferrum.engine.batch import fill_step
from ferrum.engine.options import EngineOptions
from ferrum.engine.params import SamplingParams
from ferrum.engine.prefix_cache import Keys, keys_by_block
from ferrum.engine.reports import EngineStats, TokenEvent, queue_full
from ferrum.engine.request_inputs import NO_INPUTS, checked_inputs, digest
from ferrum.engine.scheduler import Planned, Scheduler
from ferrum.engine.sequence import MaskMaker, Sequence, State, TokenMask
from ferrum.engine.state_groups import Copy
from ferrum.engine.tokens import checked_tokens
from ferrum.errors import FerrumError

MASK_SECONDS = 0.002  # a step waits so long for masks; sequences whose grammar takes more time miss it
IDLE_SECONDS = 0.05  # with nothing else to do


@dataclass(slots=True)
class Counters:
    requests: int = 0
    rejected: int = 0
    tokens_generated: int = 0
    iterations: int = 0
    prefill_tokens: int = 0
    decode_tokens: int = 0
    batch_size: int = 0


class Engine:
    """Continuous batching over one executor. Not thread-safe: one thread calls everything.

    ``eos_token_ids`` end an output unless the request says ``ignore_eos`` and has no grammar, which says itself where it ends.
    ``masks`` turns ``SamplingParams.grammar`` into masks; without it a request with a grammar is refused. ``failures``: requests
    that ended with an error since the caller last emptied it.
    """

    def __init__(
        self,
        executor: Executor,
        options: EngineOptions | None = None,
        *,
        eos_token_ids: Iterable[int] = (),
        masks: MaskMaker | None = None,
    ) -> None:
        options = options or EngineOptions()
        limits = executor.limits
        self.executor = executor
        self.options = options
        self.eos_token_ids = frozenset(eos_token_ids)
        self.masks = masks
        self.scheduler = Scheduler(limits, options)
        capacity = min(limits.num_blocks, limits.max_blocks_per_seq) * limits.block_size
        self.max_model_len = min(options.max_model_len or capacity, capacity)
        self.counters = Counters()
        self.failures: list[tuple[str, FerrumError]] = []
        self._stateful = cast(FillingExecutor, executor) if limits.groups else None
        self._overlapping = executor if isinstance(executor, OverlappingExecutor) else None
        self._under_way: list[Planned] = []
        self._sequences: dict[str, dict[int, Sequence]] = {}
        self._arrivals = 0

    def add(
        self,
        request_id: str,
        prompt: Many[int],
        params: SamplingParams,
        *,
        salt: str = "",
        extra_keys: Iterable[tuple[int, bytes]] = (),
        inputs: Mapping[str, ArrayLike] = NO_INPUTS,
    ) -> None:
        """Queue ``params.n`` choices. Prefixes are shared among requests of equal ``salt`` only.

        ``extra_keys``: (position, key) pairs. Tokens from a position on are shared only with requests that have the same pairs up
        to there: the digest of an image where its tokens begin, an adapter's name at 0. ``inputs``: what fills the model's fixed
        states, by name; requests share nothing unless theirs are equal.

        Raises FerrumError: a request that can never run ("prompt-empty", "prompt-too-long", "request-too-long",
        "invalid-token", "invalid-parameter", "duplicate-request") or that cannot be queued now ("queue-full").
        """
        try:
            tokens = self._checked_prompt(prompt)
            max_tokens = self._checked_length(len(tokens), params)
            self._check_params(request_id, len(tokens) + max_tokens, params)
            brought = checked_inputs(self.executor.limits.groups, inputs)
            inputs_digest = digest(brought)
            keys = self._checked_keys([*extra_keys, (0, inputs_digest)] if brought else extra_keys, len(tokens))
            masks = [self.masks(params.grammar) if params.grammar and self.masks else None for _ in range(params.n)]
        except FerrumError:
            self.counters.rejected += 1
            raise
        self.counters.requests += 1
        fresh = secrets.randbits(64)
        shared_salt = self._salt(params, salt)
        ends = frozenset() if params.ignore_eos and not params.grammar else self.eos_token_ids
        choices = self._sequences[request_id] = {}
        for index in range(params.n):
            choices[index] = Sequence(
                request_id,
                index,
                tokens,
                params,
                arrival=self._arrivals,
                seed=params.seed_of(index, fresh),
                max_tokens=max_tokens,
                stop_ids=frozenset(params.stop_token_ids) | ends,
                salt=shared_salt,
                keys=keys,
                inputs=brought,
                inputs_digest=inputs_digest,
                leader=choices.get(0),
                mask=masks[index],
            )
            self._arrivals += 1
            self.scheduler.add(choices[index])

    def step(self) -> list[TokenEvent]:
        """Run one step; the events of all sampled tokens. Empty when nothing was sampled or there is nothing to do.

        An exception from the device leaves the engine unusable.
        """
        self._drop_unwanted()
        if not self._under_way:
            self._await_masks(MASK_SECONDS)
        plan = self._under_way or self.scheduler.schedule()
        if not plan:
            masked = self._await_masks(IDLE_SECONDS)
            assert masked or not self.has_work, "work is left but none was scheduled"
            return []
        buffers = self._run(plan)
        self._count(plan)
        return self._collect(plan, buffers)

    def abort(self, request_id: str, index: int | None = None) -> bool:
        """End one choice or all choices of a request and free its blocks; False if there is nothing to end."""
        choices = self._sequences.get(request_id, {})
        ended = [s for s in choices.values() if index is None or s.index == index]
        for sequence in ended:
            self._end(sequence)
        return bool(ended)

    @property
    def has_work(self) -> bool:
        return bool(self._sequences)

    def stats(self) -> EngineStats:
        scheduler, counters, cache = self.scheduler, self.counters, self.scheduler.cache.counters
        decoding = sum(1 for s in scheduler.running if s.num_pending == 1)
        return EngineStats(
            queue_depth=len(scheduler.waiting),
            active_prefill=len(scheduler.running) - decoding,
            active_decode=decoding,
            current_batch_size=counters.batch_size if scheduler.running else 0,
            blocks_total=scheduler.pool.num_blocks,
            blocks_used=scheduler.pool.num_used,
            prefix_cache_entries=scheduler.cache.num_entries,
            num_requests=counters.requests,
            num_rejected=counters.rejected,
            num_tokens_generated=counters.tokens_generated,
            num_preemptions=scheduler.preemptions,
            num_iterations=counters.iterations,
            num_prefill_tokens=counters.prefill_tokens,
            num_decode_tokens=counters.decode_tokens,
            prefix_cache_hits=cache.hits,
            prefix_cache_misses=cache.misses,
            prefix_cache_evictions=cache.evictions,
            prefix_cache_saved_tokens=cache.saved_tokens,
            pools=scheduler.states.stats() if scheduler.states is not None else (),
        )

    def logits(self, prompt: Many[int]) -> NDArray[np.float32]:
        """Raw logits ``[len(prompt), vocab_size]`` after every token, in steps of their own. Only while the engine is idle.

        Raises FerrumError as ``add``, and "engine-busy".
        """
        tokens = self._checked_prompt(prompt)
        if self.has_work:
            raise FerrumError("engine-busy", "logits are computed only while no request runs", "", "finish or abort the requests")
        self._drop_unwanted()
        if len(tokens) > self.max_model_len:
            raise _too_long(len(tokens), 0, self.max_model_len)
        params = SamplingParams(temperature=0.0, max_tokens=1)
        sequence = Sequence("", 0, tokens, params, arrival=0, seed=0, max_tokens=1, stop_ids=frozenset(), salt=None)
        pool, states, limits, buffers = self.scheduler.pool, self.scheduler.states, self.executor.limits, self.executor.buffers
        sequence.blocks.extend(pool.take() for _ in range(-(-len(tokens) // limits.block_size)))
        result = np.empty((len(tokens), limits.vocab_size), np.float32)
        chunk = min(limits.max_tokens, limits.max_samples)
        if states is not None:
            states.take(sequence, [])
            self._move()
            chunk = min(chunk, self.scheduler.max_chunk)
        try:
            for start in range(0, len(tokens), chunk):
                count = min(chunk, len(tokens) - start)
                if states is not None:
                    states.grow(sequence, start + count)
                fill_step(buffers, [Planned(sequence, count, True)])
                buffers.sample(range(count))
                self.executor.step()
                result[start : start + count] = self.executor.logits()[:count]
                sequence.num_computed += count
                if states is not None:
                    states.leave(sequence)
        finally:
            for block in sequence.blocks:
                pool.release(block, keep=False)
            if states is not None:
                states.release(sequence)
        return result

    def close(self) -> None:
        """End all requests and free the device."""
        for request_id in list(self._sequences):
            self.abort(request_id)
        if self.masks is not None:
            self.masks.close()
        self.executor.close()

    def _await_masks(self, seconds: float) -> bool:
        """Wait for the masks of running sequences, or with none of these of waiting ones, but not long: others need none. End the
        requests whose grammar failed. Whether there were any masks."""
        if self.masks is None:
            return False
        running, waiting = self.scheduler.running, self.scheduler.waiting
        masked = [s for s in (running or waiting) if s.mask is not None]
        self.masks.wait([s.mask for s in masked], seconds)
        for sequence in [s for s in (*running, *waiting) if s.mask is not None and s.mask.ready and s.mask.error]:
            if sequence.state is not State.FINISHED and sequence.mask is not None and sequence.mask.error is not None:
                self.failures.append((sequence.request_id, sequence.mask.error))
                self.abort(sequence.request_id)
        return bool(masked)

    def _run(self, plan: list[Planned]) -> StepBuffers:
        """Run ``plan`` unless it is under way already; start the step after it, if that is known. The outputs of ``plan``."""
        executor = self._overlapping
        if not self._under_way:
            self._move()
        if executor is None:
            fill_step(self.executor.buffers, plan)
            self.executor.step()
            return self.executor.buffers
        if not self._under_way:
            fill_step(executor.buffers, plan)
            executor.begin()
        self._under_way = self.scheduler.ahead(plan)
        if self._under_way:
            fill_step(executor.buffers, self._under_way, ahead=True)
            executor.begin(ahead=True)
        return executor.finish()

    def _move(self) -> None:
        """Do what the scheduler wants done to states before the next step. Only while no step is under way."""
        if self._stateful is None or self.scheduler.states is None:
            return
        for move in self.scheduler.states.moves:
            if isinstance(move, Copy):
                self._stateful.copy_place(*move)
            else:
                self._stateful.fill_place(*move)
        self.scheduler.states.moves.clear()

    def _drop_unwanted(self) -> None:
        """Wait for a step under way of which no row is wanted any more."""
        if self._overlapping and self._under_way and all(p.sequence.state is State.FINISHED for p in self._under_way):
            self._overlapping.finish()
            self._under_way = []

    def _salt(self, params: SamplingParams, salt: str) -> bytes | None:
        """With the prefix cache off, only the choices of one request share: under a salt that nobody else can have."""
        if self.options.prefix_cache:
            return b"user" + salt.encode("utf-8", "surrogatepass")
        return b"once" + self._arrivals.to_bytes(8, "little") if params.n > 1 else None

    def _checked_prompt(self, prompt: Many[int]) -> array[int]:
        if not len(prompt):
            raise FerrumError("prompt-empty", "the prompt has no tokens", "prompt", "send at least one token")
        return checked_tokens(prompt, self.executor.limits.vocab_size)

    def _checked_length(self, num_prompt: int, params: SamplingParams) -> int:
        """``max_tokens`` with None resolved. A request must be able to run to its end alone in the KV memory."""
        room = self.max_model_len - num_prompt
        if room < 1 or (params.max_tokens or 0) > room:
            raise _too_long(num_prompt, params.max_tokens or 0, self.max_model_len)
        return params.max_tokens or room

    def _checked_keys(self, extra_keys: Iterable[tuple[int, bytes]], num_prompt: int) -> Keys:
        pairs = list(extra_keys)
        if any(not 0 <= position < num_prompt for position, _ in pairs):
            raise FerrumError("invalid-parameter", f"an extra key is outside of a prompt of {num_prompt} tokens", "extra_keys")
        return keys_by_block(pairs, self.executor.limits.block_size)

    def _check_params(self, request_id: str, num_tokens: int, params: SamplingParams) -> None:
        limits = self.executor.limits
        largest, where = params.largest_token_id()
        if largest >= limits.vocab_size:
            raise FerrumError("invalid-parameter", f"{where} names token {largest} of {limits.vocab_size}", where)
        if params.grammar and self.masks is None:
            raise FerrumError("invalid-parameter", "grammars need a pack with a tokenizer", "grammar")
        if params.structured is not None:
            raise FerrumError("invalid-parameter", "an engine takes a grammar; LLM makes it of structured", "structured")
        distinct = min(num_tokens, limits.vocab_size) if params.penalized else 0
        banned = len(params.stop_token_ids) + len(self.eos_token_ids)
        if max(distinct, len(params.logit_bias) + banned) > limits.max_adjust:
            raise FerrumError("invalid-parameter", "penalties or biases exceed the device's lists", "repetition_penalty")
        if request_id in self._sequences:
            raise FerrumError("duplicate-request", "a request of this id is running", "request_id")
        scheduler = self.scheduler
        unfinished = len(scheduler.waiting) + len(scheduler.running)
        if unfinished + params.n > self.options.max_queue + scheduler.max_seqs:
            raise queue_full(unfinished)

    def _count(self, plan: list[Planned]) -> None:
        counters = self.counters
        counters.iterations += 1
        counters.batch_size = len(plan)
        for sequence, num_tokens, samples in plan:
            if sequence.state is State.FINISHED:
                continue
            if samples and num_tokens == 1 and sequence.num_output:
                counters.decode_tokens += 1
            else:
                counters.prefill_tokens += num_tokens

    def _collect(self, plan: list[Planned], buffers: StepBuffers) -> list[TokenEvent]:
        events: list[TokenEvent] = []
        masks: list[TokenMask] = []
        row = 0
        for planned in plan:
            sequence = planned.sequence
            if sequence.state is not State.FINISHED:  # it ended while this step was under way
                self.scheduler.complete(planned)
                if planned.samples:
                    events += self._take(sequence, row, buffers)
                    if sequence.mask is not None and not events[-1].finish_reason:
                        masks.append(sequence.mask)
            row += planned.samples
        if masks and self.masks is not None:
            self.masks.begin(masks)
        self.counters.tokens_generated += len(events)
        return events

    def _take(self, sequence: Sequence, row: int, buffers: StepBuffers) -> list[TokenEvent]:
        """The sampled token, and those that a grammar leaves no choice about: these need no step of their own."""
        events = [self._sampled(sequence, row, buffers)]
        mask = sequence.mask
        while mask is not None and sequence.params.logprobs is None and not events[-1].finish_reason:
            forced = mask.forced()
            if not forced:
                break
            for token in forced:
                events.append(self._event(sequence, token))
                if events[-1].finish_reason:
                    break
        return events

    def _sampled(self, sequence: Sequence, row: int, buffers: StepBuffers) -> TokenEvent:
        token = int(buffers.out_token[row])
        logprob: float | None = None
        top: tuple[tuple[int, float], ...] = ()
        wanted = sequence.params.logprobs
        if wanted is not None:
            logprob = float(buffers.out_logprob[row])
            wanted = min(wanted, self.executor.limits.vocab_size)
            top = tuple(zip(buffers.top_token[row, :wanted].tolist(), buffers.top_logprob[row, :wanted].tolist(), strict=True))
        if sequence.thinking is not None:
            may_close = sequence.mask is None or sequence.mask.allows(sequence.thinking.end)
            if (stands := sequence.thinking.take(token, may_close=may_close)) != token:
                token, logprob = stands, None if logprob is None else 0.0  # it was certain
        return self._event(sequence, token, logprob, top)

    def _event(
        self, sequence: Sequence, token: int, logprob: float | None = None, top: tuple[tuple[int, float], ...] = ()
    ) -> TokenEvent:
        """Append ``token``; what is said of it."""
        reason = sequence.append(token)
        if reason:
            self._end(sequence)
        waited = sequence.queue_us if sequence.num_output == 1 else 0
        return TokenEvent(
            sequence.request_id, sequence.index, token, reason, logprob, top, max(sequence.cached_tokens, 0), waited
        )

    def _end(self, sequence: Sequence) -> None:
        if sequence.state is not State.FINISHED:
            self.scheduler.remove(sequence)
        choices = self._sequences[sequence.request_id]
        del choices[sequence.index]
        if not choices:
            del self._sequences[sequence.request_id]


def _too_long(num_prompt: int, max_tokens: int, limit: int) -> FerrumError:
    if num_prompt >= limit or max_tokens == 0:
        what = f"the prompt has {num_prompt} tokens; this model takes {limit} tokens of prompt and output together"
        return FerrumError("prompt-too-long", what, "prompt", "shorten the prompt")
    what = f"{num_prompt} tokens of prompt and {max_tokens} of output exceed {limit}"
    return FerrumError("request-too-long", what, "max_tokens", f"ask for at most {limit - num_prompt} tokens")
