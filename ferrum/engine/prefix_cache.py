"""Full KV blocks that can be shared, found by a chain of hashes.

The digest of a block is ``SHA-256(parent digest + content)``, its content the token ids as little-endian int32 and the extra
keys of its positions; the first parent is ``SHA-256("ferrum kv" + salt)``. A hit also compares the block's content and its
parent, so that a hash collision could not mix two prompts. Requests with different salts (one per API key) never share and
cannot time each other's prompts. Extra keys stand for what keys and values depend on beside the tokens: an image whose
tokens begin at a position, an adapter. Only full blocks are shared and a shared block is never written.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

from ferrum.engine.kv_blocks import BlockPool

Keys: TypeAlias = Mapping[int, bytes]  # by block, as ``keys_by_block`` makes them
NO_KEYS: Keys = MappingProxyType({})
_KEY_HEAD = struct.Struct("<QQ")  # position, bytes that follow


@dataclass
class CacheCounters:
    """Since the start. A sequence's first admission is one hit (at least one block found) or one miss."""

    hits: int = 0
    misses: int = 0
    evictions: int = 0
    saved_tokens: int = 0


class Entry(NamedTuple):
    block: int
    parent: bytes
    content: bytes


class PrefixCache:
    """The index over a pool's blocks. ``retain`` False: a block is forgotten when its last user releases it.

    ``on_forget(block)`` is called when a block is no longer found.
    """

    def __init__(self, pool: BlockPool, block_size: int, retain: bool = True) -> None:
        self.pool = pool
        self.block_size = block_size
        self.retain = retain
        self.counters = CacheCounters()
        self.on_forget: Callable[[int], None] | None = None
        self._entries: dict[bytes, Entry] = {}
        self._digest_of: dict[int, bytes] = {}
        pool.on_evict = self._evicted

    @property
    def num_entries(self) -> int:
        return len(self._entries)

    def extend_chain(self, chain: list[bytes], salt: bytes, tokens: array[int], keys: Keys = NO_KEYS) -> None:
        """Append to ``chain`` the digests of all full blocks of ``tokens`` that it lacks."""
        parent = chain[-1] if chain else root_digest(salt)
        for index in range(len(chain), len(tokens) // self.block_size):
            parent = sha256(parent + self._content(tokens, index, keys)).digest()
            chain.append(parent)

    def find(self, chain: list[bytes], salt: bytes, tokens: array[int], keys: Keys = NO_KEYS) -> list[int]:
        """Blocks of the longest cached prefix of ``tokens``, without the block of the last token: it is computed again.

        ``chain``: as ``extend_chain`` made it. Takes no reference.
        """
        blocks: list[int] = []
        for index in range(min(len(chain), (len(tokens) - 1) // self.block_size)):
            block = self.holder(chain, salt, tokens, index, keys)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def holder(self, chain: list[bytes], salt: bytes, tokens: array[int], index: int, keys: Keys = NO_KEYS) -> int | None:
        """The block that is registered as block ``index`` of ``tokens``, with the same content after the same parent."""
        entry = self._entries.get(chain[index])
        parent = chain[index - 1] if index else root_digest(salt)
        same = entry is not None and entry.parent == parent and entry.content == self._content(tokens, index, keys)
        return entry.block if entry is not None and same else None

    def insert(self, chain: list[bytes], salt: bytes, tokens: array[int], index: int, block: int, keys: Keys = NO_KEYS) -> None:
        """Register ``block`` as holding block ``index`` of ``tokens``. The first block of equal content stays."""
        digest = chain[index]
        if digest not in self._entries:
            assert block not in self._digest_of, "a shared block was written"
            parent = chain[index - 1] if index else root_digest(salt)
            self._entries[digest] = Entry(block, parent, self._content(tokens, index, keys))
            self._digest_of[block] = digest

    def release(self, block: int) -> None:
        """One reference less; content that is cached stays until it is evicted, if ``retain``."""
        cached = block in self._digest_of
        if cached and not self.retain and self.pool.references[block] == 1:
            self._forget(block)
            cached = False
        self.pool.release(block, keep=cached)

    def clear(self) -> None:
        """Forget everything that no sequence uses."""
        for block in [b for b in self._digest_of if self.pool.references[b] == 0]:
            self._forget(block)
            self.pool.discard_idle(block)

    def _evicted(self, block: int) -> None:
        self.counters.evictions += 1
        self._forget(block)

    def _forget(self, block: int) -> None:
        del self._entries[self._digest_of.pop(block)]
        if self.on_forget is not None:
            self.on_forget(block)

    def _content(self, tokens: array[int], index: int, keys: Keys) -> bytes:
        part = tokens[index * self.block_size : (index + 1) * self.block_size]
        if sys.byteorder == "big":
            part.byteswap()
        return part.tobytes() + keys[index] if index in keys else part.tobytes()


def root_digest(salt: bytes) -> bytes:
    """The parent of a first block."""
    return sha256(b"ferrum kv" + salt).digest()


def keys_by_block(extra_keys: Iterable[tuple[int, bytes]], block_size: int) -> Keys:
    """What each block's content has beside its tokens: its (position, key) pairs in order, each with its length."""
    found: dict[int, bytes] = {}
    for position, key in sorted(extra_keys):
        block = position // block_size
        found[block] = found.get(block, b"") + _KEY_HEAD.pack(position, len(key)) + key
    return found
