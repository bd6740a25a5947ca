"""Versions of states in numpy: what ``write``, ``read``, ``view`` and ``short_conv`` mean.

A write changes the state in place: the verifier has seen to it that nothing reads an old version.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ferrum.graphs.ir import Node
from ferrum.graphs.numpy_run import Array, Run
from ferrum.graphs.op_spec import integer
from ferrum.graphs.step_states import StepState


@dataclass(frozen=True)
class Version:
    """A state as a value: all of each row, or the parts (axis, start, end) that a view takes one after the other."""

    state: StepState
    parts: tuple[tuple[int, int, int], ...] = ()

    def cut(self, rows: Array) -> Array:
        for axis, start, end in self.parts:
            rows = np.take(rows, range(start, end), axis + 1)
        return rows

    def read(self, seq: int) -> tuple[int, Array]:
        """(place of the first row, rows) of a sequence."""
        first, rows = self.state.read(seq)
        return first, self.cut(rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a row."""
        return self.cut(np.empty((0, *self.state.row))).shape[1:]


def write(run: Run, node: Node) -> Version:
    version, rows = run.env[node.inputs[0]], run.get(node.inputs[1])
    axis = run.types[node.inputs[1]].shape[0]
    spans = ((i, i + 1) for i in range(len(rows))) if axis == "seqs" else run.sequences.spans(axis)
    for seq, tokens, (start, end) in zip(run.sequences.ids, run.sequences.after(), spans, strict=True):
        version.state.write(seq, rows[start:end], tokens)
    return Version(version.state)


def read(run: Run, node: Node) -> Array:
    version = run.env[node.inputs[0]]
    return np.concatenate([version.read(seq)[1] for seq in run.sequences.ids])


def view(run: Run, node: Node) -> Version:
    version, a = run.env[node.inputs[0]], node.attrs
    return Version(version.state, (*version.parts, (integer(a, "axis"), integer(a, "start"), integer(a, "end"))))


def short_conv(run: Run, node: Node) -> tuple[Array, Array]:
    x, past, weight = run.all(node)
    out, after, width = np.empty_like(x), np.empty_like(past), weight.shape[1]
    for seq, (start, end) in enumerate(run.sequences.spans(run.types[node.inputs[0]].shape[0])):
        line = np.concatenate([past[seq], x[start:end]])
        after[seq] = line[len(line) - (width - 1) :]
        out[start:end] = sum(line[i : i + end - start] * weight[:, i] for i in range(width))
    return out, after
