"""What sequences keep beside blocks, by kind; every kind answers the same questions. Plain data, no device.

A sequence has a table of places in each group while it runs: one place of a slot or a fixed group, one for each block of a
window, of which those that its next query does not see are given back. Idle places keep what may be wanted again:

- of slots, copies (checkpoints), and of windows the blocks themselves, by the cached block of the same tokens. When that block is
  forgotten, so are they. Checkpoints lie at ends of blocks, and the chunks of a prompt are cut there;
- of fixed groups, what a request's inputs gave, by these inputs and the salt.

A sequence is let in when the most places that it can hold are there beside what others can hold, so nobody waits for one later.
What a device has to do is queued in ``moves``, in order, and done before the next step is started.
"""

from __future__ import annotations

from array import array
from typing import NamedTuple, TypeAlias

from ferrum.devices.base import Limits, StateGroup, window_blocks
from ferrum.engine.places import Places
from ferrum.engine.reports import PoolStats
from ferrum.engine.request_inputs import Inputs
from ferrum.engine.sequence import Sequence

PASSED = -1  # in a table: the place of tokens that no query sees any more


class Copy(NamedTuple):
    group: int
    source: int
    target: int


class Fill(NamedTuple):
    group: int
    place: int
    inputs: Inputs


Moves: TypeAlias = list[Copy | Fill]


class GroupPlaces:
    """One group. ``table`` is a sequence's, ``blocks`` are cached ones of a prefix, ``block`` is the cached one of its tokens."""

    def __init__(self, index: int, group: StateGroup, moves: Moves, retain: bool) -> None:
        self.index = index
        self.group = group
        self.moves = moves
        self.retain = retain
        self.places = Places(group.count)

    def need(self, sequence: Sequence) -> int:
        """The most places that it holds at a time."""
        return 1

    def knows(self, blocks: list[int], count: int) -> bool:
        """Whether a sequence can go on after the first ``count`` (at least 1) of ``blocks``."""
        return True

    def take(self, sequence: Sequence, blocks: list[int]) -> array[int]:
        """The table of a sequence that goes on after ``blocks``, which the group knows, or from its first token."""
        return array("i", [self.places.pool.take()])

    def grow(self, table: array[int], num_tokens: int) -> None:
        """Make room for the first ``num_tokens`` tokens."""

    def computed(self, table: array[int], index: int, block: int) -> None:
        """Block ``index`` of a sequence is full and cached as ``block``."""

    def checkpoint(self, table: array[int], block: int) -> None:
        """A sequence has computed the tokens up to the end of ``block``, and no more."""

    def leave(self, table: array[int], num_tokens: int) -> None:
        """Give back what the query after ``num_tokens`` tokens does not see."""

    def forget(self, block: int) -> None:
        """The block is no longer found, so nobody can go on after it."""

    def release(self, table: array[int]) -> None:
        """The last places first, as of blocks."""
        for place in reversed(table):
            if place != PASSED:
                self.places.release(place, self.retain)


class SlotPlaces(GroupPlaces):
    """A place for all tokens so far; a copy of it is known by the block whose last token it follows."""

    def knows(self, blocks: list[int], count: int) -> bool:
        return self.places.find(blocks[count - 1]) is not None

    def take(self, sequence: Sequence, blocks: list[int]) -> array[int]:
        pool = self.places.pool
        saved = self.places.share(blocks[-1]) if blocks else None
        if saved is None:
            return super().take(sequence, blocks)
        if not pool.available:  # the copy is the last place: it is used up
            self.places.forget(blocks[-1])
            return array("i", [saved])
        place = pool.take()
        self.places.release(saved)
        self.moves.append(Copy(self.index, saved, place))
        return array("i", [place])

    def checkpoint(self, table: array[int], block: int) -> None:
        pool = self.places.pool
        place = self.places.share(block)
        if place is None and pool.available:
            place = pool.take()
            self.places.keep(block, place)
            self.moves.append(Copy(self.index, table[0], place))
        if place is not None:
            self.places.release(place)  # now the most recently used

    def forget(self, block: int) -> None:
        self.places.forget(block)


class FixedPlaces(GroupPlaces):
    """A place that is filled once; requests of one salt with equal inputs share it."""

    def take(self, sequence: Sequence, blocks: list[int]) -> array[int]:
        key = sequence.salt, sequence.inputs_digest
        place = self.places.share(key) if sequence.salt is not None else None
        if place is None:
            place = self.places.pool.take()
            if sequence.salt is not None:
                self.places.keep(key, place)
            inputs = {declared.name: sequence.inputs[declared.name] for declared in self.group.inputs if sequence.inputs}
            self.moves.append(Fill(self.index, place, inputs))
        return array("i", [place])


class WindowPlaces(GroupPlaces):
    """A place for each block of tokens that a query may still see."""

    def __init__(self, index: int, group: StateGroup, moves: Moves, retain: bool, block_size: int, max_chunk: int) -> None:
        super().__init__(index, group, moves, retain)
        self.block_size = block_size
        self.most = window_blocks(group.window, max_chunk, block_size)

    def need(self, sequence: Sequence) -> int:
        return min(self.most, -(-(sequence.num_prompt + sequence.max_tokens) // self.block_size))

    def first_seen(self, num_tokens: int) -> int:
        """The block of the oldest token that the query after ``num_tokens`` tokens sees."""
        return max(0, num_tokens - self.group.window + 1) // self.block_size

    def knows(self, blocks: list[int], count: int) -> bool:
        seen = blocks[self.first_seen(count * self.block_size) : count]
        return all(self.places.find(block) is not None for block in seen)

    def take(self, sequence: Sequence, blocks: list[int]) -> array[int]:
        first = self.first_seen(len(blocks) * self.block_size)
        table = array("i", [PASSED]) * first
        for block in blocks[first:]:
            place = self.places.share(block)
            assert place is not None, "a prefix whose window is gone"
            table.append(place)
        return table

    def grow(self, table: array[int], num_tokens: int) -> None:
        while len(table) * self.block_size < num_tokens:
            table.append(self.places.pool.take())

    def computed(self, table: array[int], index: int, block: int) -> None:
        self.places.keep(block, table[index])

    def leave(self, table: array[int], num_tokens: int) -> None:
        index = min(self.first_seen(num_tokens), len(table)) - 1
        while index >= 0 and table[index] != PASSED:
            self.places.release(table[index], self.retain)
            table[index] = PASSED
            index -= 1

    def forget(self, block: int) -> None:
        self.places.forget(block)


class StatePlaces:
    """All groups. ``retain`` False: what no sequence uses is forgotten. ``max_chunk``: most tokens of a sequence in a step."""

    def __init__(self, groups: tuple[StateGroup, ...], block_size: int, max_chunk: int, retain: bool) -> None:
        self.block_size = block_size
        self.moves: Moves = []
        self.groups: list[GroupPlaces] = []
        for index, group in enumerate(groups):
            if group.kind == "window":
                self.groups.append(WindowPlaces(index, group, self.moves, retain, block_size, max_chunk))
            else:
                kind = SlotPlaces if group.kind == "slot" else FixedPlaces
                self.groups.append(kind(index, group, self.moves, retain))
        self.reserved = [0] * len(groups)
        self._has_slots = any(group.kind == "slot" for group in groups)
        intervals = [-(-group.checkpoint // block_size) * block_size for group in groups if group.checkpoint]
        self._interval = min(intervals, default=0)

    def stats(self) -> tuple[PoolStats, ...]:
        return tuple(PoolStats(g.group.kind, g.group.count, g.places.pool.num_used, g.places.num_known) for g in self.groups)

    def usable(self, blocks: list[int]) -> int:
        """How many of these cached blocks a sequence can begin with: up to the last after which every group can go on."""
        return next((n for n in range(len(blocks), 0, -1) if all(group.knows(blocks, n) for group in self.groups)), 0)

    def fits(self, sequence: Sequence) -> bool:
        """Whether the sequence can be let in beside those that run."""
        needs = zip(self.groups, self.reserved, strict=True)
        return all(reserved + group.need(sequence) <= group.group.count for group, reserved in needs)

    def take(self, sequence: Sequence, blocks: list[int]) -> None:
        for index, group in enumerate(self.groups):
            self.reserved[index] += group.need(sequence)
            sequence.tables.append(group.take(sequence, blocks))

    def release(self, sequence: Sequence) -> None:
        """Give everything back; nothing is done for a sequence that has not been let in."""
        for index, (group, table) in enumerate(zip(self.groups, sequence.tables, strict=False)):
            self.reserved[index] -= group.need(sequence)
            group.release(table)
        sequence.tables.clear()

    def grow(self, sequence: Sequence, num_tokens: int) -> None:
        for group, table in zip(self.groups, sequence.tables, strict=True):
            group.grow(table, num_tokens)

    def computed(self, sequence: Sequence, index: int, block: int) -> None:
        for group, table in zip(self.groups, sequence.tables, strict=True):
            group.computed(table, index, block)

    def checkpoint(self, sequence: Sequence, block: int) -> None:
        for group, table in zip(self.groups, sequence.tables, strict=True):
            group.checkpoint(table, block)

    def leave(self, sequence: Sequence) -> None:
        for group, table in zip(self.groups, sequence.tables, strict=True):
            group.leave(table, sequence.num_computed)

    def forget(self, block: int) -> None:
        for group in self.groups:
            group.forget(block)

    def cut(self, sequence: Sequence, chunk: int) -> int:
        """``chunk`` tokens, or as many as lead to the next checkpoint."""
        if sequence.salt is None or not self._has_slots:
            return chunk
        start = sequence.num_computed
        end = self._prompt_end(sequence)
        stops = [end] if end > start else []
        if self._interval:
            stops.append((start // self._interval + 1) * self._interval)
        return min(chunk, min(stops) - start) if stops else chunk

    def due(self, sequence: Sequence, num_tokens: int) -> bool:
        """Whether a checkpoint is made when ``num_tokens`` are computed."""
        if sequence.salt is None or not self._has_slots or not num_tokens:
            return False
        return num_tokens == self._prompt_end(sequence) or bool(self._interval) and num_tokens % self._interval == 0

    def _prompt_end(self, sequence: Sequence) -> int:
        """Where the last full block ends that leaves a token of the prompt to compute."""
        return (sequence.num_prompt - 1) // self.block_size * self.block_size


def longest_chunk(limits: Limits, chunk: int) -> int:
    """``chunk``, or as many tokens of a sequence in a step as every window's places allow."""
    longest = min(limits.max_blocks_per_seq, limits.num_blocks)
    tight = [group for group in limits.groups if group.kind == "window" and group.count < longest]
    found = min([chunk, *((group.count - 1) * limits.block_size - group.window + 1 for group in tight)])
    assert found > 0, "a window has too few places for a token and what it sees"
    return found
