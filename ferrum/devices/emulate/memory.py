"""Memory whose neighbours cannot be touched: an access past an array's end (or before its start) ends the launch."""

from __future__ import annotations

import ctypes
import mmap
from typing import Literal

import numpy as np
from numpy.typing import NDArray

PAGE = mmap.PAGESIZE
# Pages that cannot be touched on either side; an index that is off by more than this may hit something else.
GUARD_PAGES = 16
# What device allocators promise; kernels rely on it for their 16-byte loads.
ALIGNMENT = 16

_PROT_NONE = 0
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

Side = Literal["end", "start"]


class GuardedBuffer:
    """``nbytes`` bytes between pages that cannot be touched.

    With ``side="end"`` the last byte (rounded up to ``ALIGNMENT``) lies before the guard, with "start" the first byte lies
    behind it. The few bytes of rounding are checked for stores by ``intact``.
    """

    def __init__(self, nbytes: int, side: Side = "end", fill: int = 0) -> None:
        self.nbytes = nbytes
        rounded = -(-max(nbytes, 1) // ALIGNMENT) * ALIGNMENT
        inner = -(-rounded // PAGE) * PAGE
        guard = GUARD_PAGES * PAGE
        self._map = mmap.mmap(-1, inner + 2 * guard)
        whole = np.frombuffer(self._map, np.uint8)
        base = whole.ctypes.data
        for start in (base, base + guard + inner):
            if _libc.mprotect(start, guard, _PROT_NONE):
                raise OSError(ctypes.get_errno(), "mprotect")
        start = guard + (inner - rounded if side == "end" else 0)
        self.data: NDArray[np.uint8] = whole[start : start + nbytes]
        self._slack: NDArray[np.uint8] = whole[start + nbytes : start + rounded]
        self._slack[:] = 0xA5
        self.address = base + start
        if fill:
            self.data[:] = fill

    def intact(self) -> bool:
        """Whether the bytes of rounding behind the last one are as they were."""
        return bool((self._slack == 0xA5).all())

    def view(self, dtype: np.typing.DTypeLike, count: int, offset: int = 0) -> NDArray[np.generic]:
        """``count`` elements at a byte offset."""
        size = np.dtype(dtype).itemsize * count
        return self.data[offset : offset + size].view(dtype)
