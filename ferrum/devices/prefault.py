"""Mapping the weights before the first step needs them.

The pages of a mapped file are entered into the process one fault at a time, 16 of them each; a first step would stop
thousands of times. A thread has the kernel enter them while the rest of the program starts, and read what is not in memory
yet into large pages where the file system has them.
"""

from __future__ import annotations

import ctypes
import sys
import threading

from ferrum.devices.host import free_memory
from ferrum.devices.topology import memory_nodes, spread_over

_HUGEPAGE = 14  # MADV_HUGEPAGE: of a file, pages that are still to be read
_POPULATE_READ = 22  # MADV_POPULATE_READ, Linux 5.14; an older kernel refuses it and nothing is lost
_CHUNK = 16 << 20  # bytes between two looks at whether to stop: milliseconds


class Prefault:
    """Maps ``nbytes`` at ``address`` in the background, unless they exceed the free memory. ``close`` before they go."""

    def __init__(self, address: int, nbytes: int) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(address, nbytes), name="prefault", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Safe to call twice."""
        self._stop.set()
        self._thread.join()

    def _run(self, address: int, nbytes: int) -> None:
        if sys.platform != "linux" or nbytes > free_memory():
            return
        spread_over(memory_nodes())
        madvise = ctypes.CDLL(None).madvise  # releases the GIL, which mmap.madvise does not
        madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        madvise(address, nbytes, _HUGEPAGE)
        for start in range(0, nbytes, _CHUNK):
            if self._stop.is_set() or madvise(address + start, min(_CHUNK, nbytes - start), _POPULATE_READ):
                return
