"""``pool`` in numpy."""

from __future__ import annotations

import numpy as np

from ferrum.graphs.ir import Node
from ferrum.graphs.numpy_run import Array, Run


def pooled(rows: Array, how: str) -> Array:
    """Rows [n, width] of one sequence → [width]."""
    count = len(rows)
    match how:
        case "first":
            return np.asarray(rows[0])
        case "last":
            return np.asarray(rows[-1])
        case "max":
            return np.asarray(rows.max(0))
        case "mean":
            return np.asarray(rows.mean(0))
        case "mean_sqrt_len":
            return np.asarray(rows.sum(0) / np.sqrt(count, dtype=rows.dtype))
    weights = np.arange(1, count + 1, dtype=rows.dtype)
    return np.asarray((rows * weights[:, None]).sum(0) / weights.sum())


def pool(run: Run, node: Node) -> Array:
    x, *wanted = run.all(node)
    how = str(node.attrs["how"])
    if x.ndim == 3:
        return np.stack([np.broadcast_to(pooled(rows, how), rows.shape) for rows in x])
    spans = [span for span in run.sequences.spans("tokens") if span[0] < span[1]]
    each = [pooled(x[start:end], how) for start, end in spans]
    if not wanted:
        return np.repeat(np.stack(each), [end - start for start, end in spans], axis=0)
    return np.stack(each)[np.searchsorted([start for start, _ in spans], wanted[0], side="right") - 1]
