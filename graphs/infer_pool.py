"""Shapes of ``pool``: the rows of a sequence become one."""

from __future__ import annotations

from ferrum.graphs.ir import Value
from ferrum.graphs.op_spec import Attrs, Inputs, Typed, need, show

# How the rows of a sequence of n tokens become one: the row of its first or last token, the mean or the greatest of each column,
# the sum over the square root of n, and the mean in which row i counts i times, from 1 on.
HOWS = ("first", "last", "mean", "max", "mean_sqrt_len", "weighted_mean")


def pool(x: Inputs, a: Attrs, _: Value | None) -> Typed:
    """Rows [batch, seq, width] or ragged [tokens, width]: each becomes what its sequence is pooled to. With a second input, the
    numbers [samples] of rows, there is one result for each of these: that of the sequence which the row is in."""
    rows = x[0].shape
    need(a["how"] in HOWS, f"how {a['how']!r} is none of {', '.join(HOWS)}")
    need(x[0].dtype == "f32" and len(rows) in (2, 3), f"rows {show(rows)} of floats")
    if len(x) == 1:
        return "f32", rows
    need(len(rows) == 2, f"rows {show(rows)} that are not ragged")
    need(x[1].dtype in ("i32", "i64") and len(x[1].shape) == 1, "row numbers must be a vector of integers")
    return "f32", (*x[1].shape, rows[1])
