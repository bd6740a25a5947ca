"""Which sequences take part in the next step, with how many tokens, and who owns which KV blocks. Plain data, no device.

A step has a budget of tokens and of sampled rows. It is filled in this order, each time first come first served:

1. sequences in decode (one token each);
2. sequences in prefill, a chunk each;
3. waiting sequences, when all blocks of their tokens fit, leaving one block for each running sequence (so that a sequence
   that was just preempted is not admitted only to be preempted again).

All blocks of the tokens known so far are taken at admission, so only decode can run out of blocks (of several tokens at once,
where a grammar forced some). Then the youngest
running sequence gives back all its blocks and waits again; later its tokens are computed anew (unless they are still in
the prefix cache) and its output goes on unchanged. The oldest sequence is never preempted by others and the engine
refuses what could not run alone, so every sequence finishes.

The first waiting sequence is never overtaken for want of memory. Only the further choices of one request (n > 1) let
others pass while their first choice computes the prompt they share, and whoever waits for its grammar. A running sequence whose
next mask is not there takes no part in a step.

Where sequences keep more than blocks (``limits.groups``), ``states`` says which place of each group is whose. Whoever is let in
has all the places that it can need, and a cached prefix counts as far as every group knows its content.
"""

from __future__ import annotations

import time
from bisect import insort
from dataclasses import dataclass
from typing import NamedTuple

from ferrum.devices.base import Limits
from ferrum.engine.kv_blocks import BlockPool
from ferrum.engine.options import EngineOptions
from ferrum.engine.prefix_cache import PrefixCache
from ferrum.engine.sequence import Sequence, State
from ferrum.engine.state_groups import StatePlaces, longest_chunk


class Planned(NamedTuple):
    """``num_tokens`` of ``sequence`` from its ``num_computed`` on; ``samples``: they reach the end, so a token is sampled."""

    sequence: Sequence
    num_tokens: int
    samples: bool


@dataclass(slots=True)
class Budget:
    """What is left of a step."""

    tokens: int
    samples: int
    penalties: int
    biases: int


class Scheduler:
    """Queues and block tables. ``waiting`` and ``running`` are in order of arrival."""

    def __init__(self, limits: Limits, options: EngineOptions) -> None:
        self.limits = limits
        self.block_size = limits.block_size
        self.max_seqs = min(options.max_num_seqs or limits.max_seqs, limits.max_seqs)
        self.max_tokens = min(options.max_num_batched_tokens or limits.max_tokens, limits.max_tokens)
        self.max_chunk = min(options.max_prefill_chunk or self.max_tokens, self.max_tokens)
        self.pool = BlockPool(limits.num_blocks)
        self.cache = PrefixCache(self.pool, limits.block_size, retain=options.prefix_cache)
        self.states: StatePlaces | None = None
        if limits.groups:
            self.max_chunk = longest_chunk(limits, self.max_chunk)
            self.states = StatePlaces(limits.groups, limits.block_size, self.max_chunk, options.prefix_cache)
            self.cache.on_forget = self.states.forget
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.preemptions = 0

    def add(self, sequence: Sequence) -> None:
        insort(self.waiting, sequence, key=_arrival)

    def remove(self, sequence: Sequence) -> None:
        """End a sequence in whatever state it is; its blocks are free afterwards."""
        (self.running if sequence.state is State.RUNNING else self.waiting).remove(sequence)
        sequence.state = State.FINISHED
        self._release_blocks(sequence)

    def schedule(self) -> list[Planned]:
        """The next step. Empty only when there is nothing to do but to wait for masks."""
        limits = self.limits
        budget = Budget(self.max_tokens, limits.max_samples, limits.max_adjust, limits.max_adjust)
        plan: list[Planned] = []
        running = [s for s in self.running if not s.masked_out]
        grown = [s for s in running if s.num_pending == 1 or self._lacks_blocks(s)]
        for sequence in grown:
            # an earlier one may have preempted it: the youngest goes first, so it is not in the plan yet
            if sequence.state is State.RUNNING and self._fits(sequence, 1, budget) and self._grow(sequence):
                self._plan(sequence, budget, plan)
        for sequence in running:
            if sequence.state is State.RUNNING and sequence.num_pending > 1 and sequence not in grown:
                self._plan(sequence, budget, plan)
        self._admit_waiting(budget, plan)
        return plan

    def ahead(self, plan: list[Planned]) -> list[Planned]:
        """The step after ``plan``, which is under way, when it can be known without its tokens; else empty.

        That is so when every running sequence samples in ``plan``, goes on whatever is sampled (but for stop tokens: then a
        row of the next step is wasted) and has a block for one more token, when no checkpoint is due in between, and when nobody
        waits who could be let in.
        """
        if len(plan) != len(self.running) or (self.waiting and len(self.running) < self.max_seqs):
            return []
        missing = 0
        for sequence, _, samples in plan:
            if not samples or sequence.state is not State.RUNNING or not sequence.steady:
                return []
            if self.states is not None and self.states.due(sequence, len(sequence.tokens)):
                return []
            missing += len(sequence.tokens) + 1 > len(sequence.blocks) * self.block_size
        if missing > self.pool.available or len(plan) > min(self.max_tokens, self.limits.max_samples):
            return []
        for sequence, _, _ in plan:
            if len(sequence.tokens) + 1 > len(sequence.blocks) * self.block_size:
                sequence.blocks.append(self.pool.take())
            if self.states is not None:
                self.states.grow(sequence, len(sequence.tokens) + 1)
        return [Planned(sequence, 1, True) for sequence, _, _ in plan]

    def complete(self, planned: Planned) -> None:
        """The step has run: the tokens' keys and values are there, and full blocks may be shared."""
        sequence = planned.sequence
        first = sequence.num_computed // self.block_size
        sequence.num_computed += planned.num_tokens
        full = sequence.num_computed // self.block_size
        if sequence.salt is not None and first < full:
            prefix = sequence.chain, sequence.salt, sequence.tokens
            self.cache.extend_chain(*prefix, sequence.keys)
            for index in range(first, full):
                self.cache.insert(*prefix, index, sequence.blocks[index], sequence.keys)
            if self.states is not None:
                self._keep_states(self.states, sequence, first, full)
        if self.states is not None:
            self.states.leave(sequence)

    def _keep_states(self, states: StatePlaces, sequence: Sequence, first: int, full: int) -> None:
        """Let later sequences go on after the cached blocks ``first`` to ``full`` of this one."""
        assert sequence.salt is not None
        for index in range(first, full):
            block = self.cache.holder(sequence.chain, sequence.salt, sequence.tokens, index, sequence.keys)
            if block is None:  # their digest is another one's
                return
            states.computed(sequence, index, block)
            if index == full - 1 and states.due(sequence, sequence.num_computed):
                states.checkpoint(sequence, block)

    def _plan(self, sequence: Sequence, budget: Budget, plan: list[Planned]) -> None:
        """Put as much of the sequence in the plan as the budget allows; its blocks are there already."""
        pending = sequence.num_pending
        chunk = min(pending, budget.tokens, self.max_chunk)
        if self.states is not None:
            chunk = self.states.cut(sequence, chunk)
        if chunk == pending and not self._fits(sequence, chunk, budget):
            chunk -= 1  # no room to sample: the last token waits for a later step
        if chunk <= 0:
            return
        if self.states is not None:
            self.states.grow(sequence, sequence.num_computed + chunk)
        samples = chunk == pending
        budget.tokens -= chunk
        if samples:
            budget.samples -= 1
            budget.penalties -= len(sequence.counts.tokens)
            budget.biases -= len(sequence.bias_tokens) + sequence.num_banned
        plan.append(Planned(sequence, chunk, samples))

    def _fits(self, sequence: Sequence, chunk: int, budget: Budget) -> bool:
        """Whether ``chunk`` tokens and a sampled row fit in the budget."""
        return (
            chunk <= budget.tokens
            and budget.samples > 0
            and len(sequence.counts.tokens) <= budget.penalties
            and len(sequence.bias_tokens) + sequence.num_banned <= budget.biases
        )

    def _lacks_blocks(self, sequence: Sequence) -> bool:
        return len(sequence.tokens) > len(sequence.blocks) * self.block_size

    def _grow(self, sequence: Sequence) -> bool:
        """Make room for the tokens to be decoded, preempting younger sequences. False: it was preempted itself."""
        while self._lacks_blocks(sequence):
            while self.pool.available == 0:
                youngest = self.running[-1]
                self._preempt(youngest)
                if youngest is sequence:
                    return False
            sequence.blocks.append(self.pool.take())
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._release_blocks(sequence)
        sequence.num_computed = 0
        sequence.state = State.WAITING
        insort(self.waiting, sequence, key=_arrival)
        self.preemptions += 1

    def _admit_waiting(self, budget: Budget, plan: list[Planned]) -> None:
        place = 0
        while place < len(self.waiting) and budget.tokens > 0 and len(self.running) < self.max_seqs:
            sequence = self.waiting[place]
            if sequence.masked_out or self._held(sequence):
                place += 1
                continue
            if not self._admit(sequence):
                return
            del self.waiting[place]
            insort(self.running, sequence, key=_arrival)
            sequence.state = State.RUNNING
            if sequence.queue_us < 0:
                sequence.queue_us = int((time.monotonic() - sequence.queued_at) * 1e6)
            self._plan(sequence, budget, plan)

    def _held(self, sequence: Sequence) -> bool:
        """Whether it is worth waiting until the first choice of the request has computed the shared prompt."""
        leader = sequence.leader
        if leader is None or leader.state is State.FINISHED or leader.num_prompt <= self.block_size:
            return False
        return leader.num_computed < leader.num_prompt

    def _admit(self, sequence: Sequence) -> bool:
        """Take all blocks of the sequence's tokens, shared ones first; False when they do not fit now."""
        if self.states is not None and not self.states.fits(sequence):
            return False
        found: list[int] = []
        if sequence.salt is not None:
            prefix = sequence.chain, sequence.salt, sequence.tokens, sequence.keys
            self.cache.extend_chain(*prefix)
            found = self.cache.find(*prefix)
            if self.states is not None:
                found = found[: self.states.usable(found)]
        missing = -(-len(sequence.tokens) // self.block_size) - len(found)
        idle = sum(1 for block in found if self.pool.references[block] == 0)
        if missing + len(self.running) > self.pool.available - idle:
            return False
        for block in found:
            self.pool.share(block)
        sequence.blocks.extend(found)
        for _ in range(missing):
            sequence.blocks.append(self.pool.take())
        sequence.num_computed = len(found) * self.block_size
        if self.states is not None:
            self.states.take(sequence, found)
        if sequence.cached_tokens < 0:
            self._count_lookup(sequence)
        return True

    def _count_lookup(self, sequence: Sequence) -> None:
        sequence.cached_tokens = sequence.num_computed
        if sequence.salt is not None:
            counters = self.cache.counters
            counters.saved_tokens += sequence.cached_tokens
            if sequence.cached_tokens:
                counters.hits += 1
            else:
                counters.misses += 1

    def _release_blocks(self, sequence: Sequence) -> None:
        """The last blocks first: a cached block is of no use without those before it, so it should be evicted earlier."""
        for block in reversed(sequence.blocks):
            self.cache.release(block)
        del sequence.blocks[:]
        if self.states is not None:
            self.states.release(sequence)


def _arrival(sequence: Sequence) -> int:
    return sequence.arrival
