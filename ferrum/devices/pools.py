"""The pools of blocks of a loaded model, one for each group of its states: how many blocks each has, and where it lies.

All lie in one piece of memory. A budget of bytes is shared out so that as many sequences of the greatest length as possible fit,
in every pool as many; what they need of a window is what they can hold of it at a time.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace
from typing import NamedTuple

from ferrum.devices.base import Limits, StateGroup, window_blocks
from ferrum.errors import FerrumError
from ferrum.pack.launches import ALIGNMENT
from ferrum.pack.programs import KvGroup

# Tokens of the shortest sequence for which a model is worth loading when nobody said how much memory it may have.
_USEFUL = 256


class Pool(NamedTuple):
    """``num_blocks`` blocks of ``block_bytes`` from byte ``start`` on."""

    start: int
    block_bytes: int
    num_blocks: int

    def at(self, block: int) -> int:
        """Where a block starts, on devices that keep its layers together."""
        return self.start + block * self.block_bytes


@dataclass(frozen=True)
class Pools:
    """The pools by the number of their group, and the bytes of all."""

    pools: tuple[Pool, ...]
    nbytes: int

    @classmethod
    def of(cls, groups: tuple[KvGroup, ...], limits: Limits) -> Pools:
        counts = limits.num_blocks, *(group.count for group in limits.groups)
        pools, at = [], 0
        for group, count in zip(groups, counts, strict=True):
            at = -(-at // ALIGNMENT) * ALIGNMENT
            pools.append(Pool(at, group.unit_bytes, count))
            at += count * group.unit_bytes
        return cls(tuple(pools), at)


def per_sequence(group: KvGroup, limits: Limits) -> int:
    """The most blocks of a group that a sequence of the greatest length holds; of a slot one, and a copy for a shared prefix."""
    if group.checkpoint:
        return 2
    if not group.window:
        return limits.max_blocks_per_seq
    return min(limits.max_blocks_per_seq, window_blocks(group.window, limits.max_tokens, limits.block_size))


def blocks_within(groups: tuple[KvGroup, ...], limits: Limits, budget: int) -> tuple[int, ...]:
    """Blocks of each group in ``budget`` bytes: for up to ``max_seqs`` sequences of the greatest length, else for the longest one
    that fits.
    """
    most = [per_sequence(group, limits) for group in groups]

    def nbytes(blocks: int) -> int:
        """Of one sequence of so many blocks."""
        return sum(min(blocks, held) * group.unit_bytes for group, held in zip(groups, most, strict=True))

    whole = nbytes(limits.max_blocks_per_seq)
    if budget >= whole:
        return tuple(min(held * budget // max(whole, 1), held * limits.max_seqs) for held in most)
    fitting = bisect_right(range(1, limits.max_blocks_per_seq + 1), budget, key=nbytes)
    return tuple(min(fitting, held) for held in most)


def windows(groups: tuple[KvGroup, ...], counts: tuple[int, ...]) -> tuple[StateGroup, ...]:
    """What of the groups sequences keep beside the blocks of the first."""
    return tuple(
        StateGroup("slot", count, group.checkpoint) if group.checkpoint else StateGroup("window", count, window=group.window)
        for group, count in zip(groups[1:], counts[1:], strict=True)
    )


def with_blocks(limits: Limits, groups: tuple[KvGroup, ...], budget: int, asked: bool) -> Limits:
    """``limits`` with blocks in ``budget`` bytes; ``asked``: somebody said how many these are.

    Raises FerrumError when not even one sequence of a useful length fits.
    """
    counts = blocks_within(groups, limits, budget)
    length = limits.max_blocks_per_seq * limits.block_size
    if counts[0] < 1 or (not asked and counts[0] * limits.block_size < min(length, _USEFUL)):
        whole = sum(per_sequence(group, limits) * group.unit_bytes for group in groups)
        raise FerrumError(
            "kv-memory-too-small",
            f"{budget >> 20} MiB hold KV blocks of {counts[0] * limits.block_size} tokens",
            "--kv-cache-memory",
            f"{length} tokens need {-(-whole >> 20)} MiB: free memory or lower --max-model-len",
        )
    return replace(limits, num_blocks=counts[0], groups=windows(groups, counts))
