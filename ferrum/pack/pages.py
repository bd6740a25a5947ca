"""Pages of mapped files, given back when they have been read: a file of any size then takes a bounded part of the memory.

A page of a read-only mapping that was given back is read again when it is touched again, so giving back is never wrong.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
from types import TracebackType

WINDOW = 64 << 20
"""Bytes that are read of a file before its pages are given back."""
_PERIOD = 0.01  # seconds; a machine reads less than WINDOW times a few in it


def give_back(mapped: mmap.mmap) -> None:
    """Release all resident pages of a read-only mapping of a file. Where the system has no such call nothing happens."""
    if hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


class GivingBack:
    """While it is open, a thread gives back the pages of ``nbytes`` mapped at ``address`` again and again.

    For code that reads all of a mapping in one call (a step of a pack). Slower than leaving the pages, so only for proofs.
    """

    def __init__(self, address: int, nbytes: int) -> None:
        start = address // mmap.PAGESIZE * mmap.PAGESIZE
        self._range = start, address + nbytes - start
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="give-back", daemon=True)

    def __enter__(self) -> GivingBack:
        if hasattr(mmap, "MADV_DONTNEED"):
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        madvise = ctypes.CDLL(None).madvise  # releases the GIL, which mmap.madvise does not
        madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        while not self._stop.wait(_PERIOD):
            madvise(*self._range, mmap.MADV_DONTNEED)
