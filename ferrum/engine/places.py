"""Numbered places of a device's memory, some of whose content is known by a key. Plain data.

A known place that nobody uses is idle: it can be found by its key until ``take`` needs it for something else, the least recently
used one first. Of equal keys there is one place.
"""

from __future__ import annotations

from collections.abc import Hashable

from ferrum.engine.kv_blocks import BlockPool


class Places:
    """``count`` places, and the keys of those whose content is known."""

    def __init__(self, count: int) -> None:
        self.pool = BlockPool(count, self._evicted)
        self._places: dict[Hashable, int] = {}
        self._keys: dict[int, Hashable] = {}

    @property
    def num_known(self) -> int:
        return len(self._places)

    def find(self, key: Hashable) -> int | None:
        """The place of this content. Takes no reference."""
        return self._places.get(key)

    def share(self, key: Hashable) -> int | None:
        """The place of this content, with one more reference."""
        place = self._places.get(key)
        if place is not None:
            self.pool.share(place)
        return place

    def keep(self, key: Hashable, place: int) -> None:
        """Know ``place``, which is used, by ``key``, unless either is known already."""
        if key not in self._places and place not in self._keys:
            self._places[key] = place
            self._keys[place] = key

    def forget(self, key: Hashable) -> None:
        place = self._places.pop(key, None)
        if place is not None:
            del self._keys[place]
            if self.pool.references[place] == 0:
                self.pool.discard_idle(place)

    def release(self, place: int, retain: bool = True) -> None:
        """One reference less. ``retain`` False: content is forgotten with its last user."""
        if place in self._keys and not retain and self.pool.references[place] == 1:
            self.forget(self._keys[place])
        self.pool.release(place, keep=place in self._keys)

    def _evicted(self, place: int) -> None:
        del self._places[self._keys.pop(place)]
