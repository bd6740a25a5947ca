"""A head that is the embedding: what the configuration says of it, and what the checkpoint holds."""

from __future__ import annotations

import numpy as np

from ferrum.graphs.weights.checkpoint import Checkpoint

_ROWS = 1 << 12


def differ(checkpoint: Checkpoint, first: str, second: str) -> bool:
    """Whether both tensors are there and are not the same numbers, however a configuration ties them."""
    if first not in checkpoint or second not in checkpoint:
        return False
    if checkpoint.info(first) != checkpoint.info(second):
        return True
    a, b = (checkpoint.read(name) for name in (first, second))
    return any(not np.array_equal(a[row : row + _ROWS], b[row : row + _ROWS]) for row in range(0, len(a), _ROWS))
