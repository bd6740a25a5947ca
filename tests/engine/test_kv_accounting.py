"""Blocks and prefixes as plain data."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ferrum.engine import prefix_cache
from ferrum.engine.kv_blocks import BlockPool
from ferrum.engine.prefix_cache import NO_KEYS, Keys, PrefixCache, keys_by_block

SIZE = 4


def tokens(*values: int) -> array[int]:
    return array("i", values)


def fill(cache: PrefixCache, text: array[int], salt: bytes = b"", keys: Keys = NO_KEYS) -> list[int]:
    """Compute ``text`` as a sequence would and give its blocks back."""
    chain: list[bytes] = []
    cache.extend_chain(chain, salt, text, keys)
    blocks = cache.find(chain, salt, text, keys)
    for block in blocks:
        cache.pool.share(block)
    while len(blocks) < -(-len(text) // SIZE):
        blocks.append(cache.pool.take())
    for index in range(len(text) // SIZE):
        cache.insert(chain, salt, text, index, blocks[index], keys)
    for block in reversed(blocks):
        cache.release(block)
    return blocks


def found(cache: PrefixCache, text: array[int], salt: bytes = b"", keys: Keys = NO_KEYS) -> list[int]:
    chain: list[bytes] = []
    cache.extend_chain(chain, salt, text, keys)
    return cache.find(chain, salt, text, keys)


def test_only_full_blocks_are_found_and_the_last_token_is_left() -> None:
    cache = PrefixCache(BlockPool(8), SIZE)
    text = tokens(*range(10))
    blocks = fill(cache, text)
    assert found(cache, text) == blocks[:2]
    assert found(cache, text[:8]) == blocks[:1]
    assert found(cache, text[:9]) == blocks[:2]
    assert found(cache, tokens(0, 1, 2, 3, 9, 9, 9, 9, 9)) == blocks[:1]
    assert found(cache, tokens(4, 5, 6, 7, 8)) == [], "a block is found only after its own prefix"


def test_salts_do_not_share() -> None:
    cache = PrefixCache(BlockPool(8), SIZE)
    fill(cache, tokens(*range(8)), b"one")
    assert found(cache, tokens(*range(9)), b"two") == []
    assert len(found(cache, tokens(*range(9)), b"one")) == 2


KEYS = st.lists(st.tuples(st.integers(0, 11), st.binary(max_size=3)), max_size=3, unique=True)


@given(KEYS, KEYS)
def test_blocks_are_shared_up_to_the_first_extra_key_that_differs(
    one: list[tuple[int, bytes]], two: list[tuple[int, bytes]]
) -> None:
    cache, text = PrefixCache(BlockPool(8), SIZE), tokens(*[7] * 13)
    mine, theirs = keys_by_block(one, SIZE), keys_by_block(two, SIZE)
    blocks = fill(cache, text, keys=mine)
    alike = 0
    while alike < 3 and {k for k in one if k[0] // SIZE == alike} == {k for k in two if k[0] // SIZE == alike}:
        alike += 1
    assert found(cache, text, keys=theirs) == blocks[:alike]
    assert found(cache, text, keys=keys_by_block(reversed(one), SIZE)) == blocks[:3]


def test_extra_keys_are_told_apart_where_their_bytes_join_alike() -> None:
    pairs = [(0, b"ab")], [(0, b"a"), (0, b"b")], [(1, b"ab")], [(0, b"")], []
    assert len({keys_by_block(p, SIZE).get(0, b"") for p in pairs}) == len(pairs)


def test_a_hash_collision_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Colliding:
        def __init__(self, data: bytes) -> None:
            pass

        def digest(self) -> bytes:
            return b"same"

    monkeypatch.setattr(prefix_cache, "sha256", Colliding)
    cache = PrefixCache(BlockPool(8), SIZE)
    fill(cache, tokens(1, 2, 3, 4))
    assert len(found(cache, tokens(1, 2, 3, 4, 5))) == 1
    assert found(cache, tokens(9, 2, 3, 4, 5)) == []


def test_equal_blocks_after_different_prefixes_are_both_found() -> None:
    cache = PrefixCache(BlockPool(8), SIZE)
    one, two = tokens(1, 1, 1, 1, 5, 5, 5, 5, 0), tokens(2, 2, 2, 2, 5, 5, 5, 5, 0)
    assert fill(cache, one)[:2] == found(cache, one) and fill(cache, two)[:2] == found(cache, two)
    assert not set(found(cache, one)) & set(found(cache, two))


def test_a_collision_of_chains_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hash that forgets the parent: the tokens of the second block agree, its prefix does not."""

    class Forgetful:
        def __init__(self, data: bytes) -> None:
            self.data = data[-SIZE * 4 :]

        def digest(self) -> bytes:
            return self.data

    monkeypatch.setattr(prefix_cache, "sha256", Forgetful)
    cache = PrefixCache(BlockPool(8), SIZE)
    fill(cache, tokens(1, 1, 1, 1, 5, 5, 5, 5))
    (first,) = fill(cache, tokens(2, 2, 2, 2))
    assert found(cache, tokens(2, 2, 2, 2, 5, 5, 5, 5, 0)) == [first]


def test_the_least_recently_used_goes_first_and_tails_before_heads() -> None:
    pool = BlockPool(6)
    cache = PrefixCache(pool, SIZE)
    old = fill(cache, tokens(*range(0, 8)))
    new = fill(cache, tokens(*range(10, 18)))
    assert found(cache, tokens(*range(9))) == old
    taken = [pool.take() for _ in range(3)]
    assert taken[2] == old[1] and cache.counters.evictions == 1
    assert found(cache, tokens(*range(9))) == old[:1] and found(cache, tokens(*range(10, 19))) == new


def test_without_retain_nothing_stays() -> None:
    cache = PrefixCache(BlockPool(8), SIZE, retain=False)
    fill(cache, tokens(*range(8)))
    assert cache.num_entries == 0 and cache.pool.num_idle == 0 and cache.pool.available == 8


def test_clear_keeps_what_is_used() -> None:
    cache = PrefixCache(BlockPool(8), SIZE)
    blocks = fill(cache, tokens(*range(8)))
    cache.pool.share(blocks[0])
    cache.clear()
    assert cache.num_entries == 1 and cache.pool.num_idle == 0
    cache.release(blocks[0])
    assert cache.pool.num_idle == 1


class PoolMachine(RuleBasedStateMachine):
    """A pool against a model that is only a list of held blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.evicted: list[int] = []
        self.pool = BlockPool(5, self.evicted.append)
        self.held: list[int] = []
        self.cached: set[int] = set()

    @precondition(lambda self: self.pool.available > 0)
    @rule()
    def take(self) -> None:
        block = self.pool.take()
        assert block not in self.held
        assert (block in self.cached) == (block in self.evicted)
        self.cached.discard(block)
        self.evicted.clear()
        self.held.append(block)

    @precondition(lambda self: self.held or self.cached)
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from(sorted(set(self.held) | self.cached)))
        self.pool.share(block)
        self.held.append(block)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), keep=st.booleans())
    def release(self, data: st.DataObject, keep: bool) -> None:
        block = data.draw(st.sampled_from(sorted(set(self.held))))
        self.held.remove(block)
        self.pool.release(block, keep)
        if block not in self.held:
            self.cached.discard(block)
            if keep:
                self.cached.add(block)

    @invariant()
    def counts(self) -> None:
        used = set(self.held)
        assert self.pool.num_used == len(used) and self.pool.available == 5 - len(used)
        assert self.pool.num_idle == len(self.cached - used)
        assert self.pool.references == [self.held.count(b) for b in range(5)]


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=60, deadline=None)
