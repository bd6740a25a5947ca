"""Mapping a file's pages in the background."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from pathlib import Path

import psutil
import pytest

from ferrum.devices import prefault
from ferrum.devices.prefault import Prefault

SIZE = 40 << 20  # more than two chunks
POPULATES = sys.platform == "linux" and tuple(map(int, os.uname().release.split(".")[:2])) >= (5, 14)


@pytest.fixture
def mapped(tmp_path: Path) -> mmap.mmap:
    path = tmp_path / "weights"
    path.write_bytes(b"w" * SIZE)
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), SIZE, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)


def address(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def resident(name: str) -> int:
    return sum(m.rss for m in psutil.Process().memory_maps() if m.path.endswith(name))


@pytest.mark.skipif(not POPULATES, reason="needs Linux 5.14")
def test_the_pages_are_there_without_a_touch(mapped: mmap.mmap) -> None:
    assert resident("/weights") < SIZE // 2
    one = Prefault(address(mapped), SIZE)
    one._thread.join(60)
    assert resident("/weights") == SIZE
    one.close()
    one.close()


def test_what_exceeds_the_free_memory_is_left_alone(mapped: mmap.mmap, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefault, "free_memory", lambda: SIZE - 1)
    one = Prefault(address(mapped), SIZE)
    one._thread.join(60)
    one.close()
    assert POPULATES is False or resident("/weights") < SIZE // 2


def test_memory_that_is_not_there_does_no_harm() -> None:
    one = Prefault(1 << 20, SIZE)
    one._thread.join(60)
    one.close()
