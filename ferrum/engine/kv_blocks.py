"""Accounting of KV blocks as plain data: which are free, how often each is used, which idle ones hold a known prefix.

A block is in one of three states: *free* (no content worth keeping), *used* (one or more references) or *idle* (no
reference, but its content is in the prefix cache). ``take`` prefers free blocks, then evicts the least recently used
idle one. No memory is held here; a block is an index.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable


class BlockPool:
    """``num_blocks`` blocks. ``on_evict(block)`` is called when an idle block loses its content."""

    def __init__(self, num_blocks: int, on_evict: Callable[[int], None] | None = None) -> None:
        self.num_blocks = num_blocks
        self.on_evict = on_evict
        self.references = [0] * num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()  # least recently used first

    @property
    def available(self) -> int:
        """Blocks that ``take`` can still give."""
        return len(self._free) + len(self._idle)

    @property
    def num_idle(self) -> int:
        return len(self._idle)

    @property
    def num_used(self) -> int:
        return self.num_blocks - self.available

    def take(self) -> int:
        """A block with one reference. The caller has looked at ``available``."""
        if self._free:
            block = self._free.pop()
        else:
            block, _ = self._idle.popitem(last=False)
            if self.on_evict is not None:
                self.on_evict(block)
        self.references[block] = 1
        return block

    def share(self, block: int) -> None:
        """One more reference to a used or idle block."""
        if self.references[block] == 0:
            del self._idle[block]
        self.references[block] += 1

    def release(self, block: int, keep: bool) -> None:
        """One reference less; the last one makes the block idle (``keep``: its content is cached) or free."""
        assert self.references[block] > 0, f"block {block} released too often"
        self.references[block] -= 1
        if self.references[block] == 0:
            if keep:
                self._idle[block] = None
            else:
                self._free.append(block)

    def discard_idle(self, block: int) -> None:
        """Move an idle block to the free ones."""
        del self._idle[block]
        self._free.append(block)
