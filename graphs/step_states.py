"""What sequences keep between steps, in numpy: one ``StepState`` for each state of a graph, ``StepStates`` for all of them.

Every kind answers the same questions: how many bytes, begin and end a sequence, write, cut back to fewer tokens, take and put
back a checkpoint, copy to another sequence, to and from bytes. The rows are shared by nobody: a copy is a copy.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferrum.graphs.ir import State

Array = NDArray[Any]
ELEMENT_BYTES = {"f32": 4, "bf16": 2, "f16": 2}
_HEAD = struct.Struct("<QQQ")  # tokens, place of the first row, rows


@dataclass(frozen=True)
class StateRows:
    """What one state holds of one sequence after ``tokens`` tokens: ``rows``, the first of which has the place ``first``."""

    tokens: int
    first: int
    rows: Array

    def to_bytes(self) -> bytes:
        return _HEAD.pack(self.tokens, self.first, len(self.rows)) + self.rows.tobytes()


class StepState:
    """One state of all sequences. ``dtype`` is what rows are kept and computed in; ``nbytes`` counts the state's own dtype."""

    def __init__(self, state: State, dtype: type[np.floating[Any]]) -> None:
        self.state, self.dtype = state, np.dtype(dtype)
        self.row: tuple[int, ...] = tuple(int(dim) for dim in state.shape)
        self.held: dict[int, StateRows] = {}

    def kept_rows(self, tokens: int) -> int:
        """The most rows that a query behind ``tokens`` tokens sees."""
        return tokens

    def nbytes(self, seqs: int, tokens: int) -> int:
        """Memory of what the next queries of ``seqs`` sequences of up to ``tokens`` tokens each see."""
        return seqs * self.kept_rows(tokens) * int(np.prod(self.row)) * ELEMENT_BYTES[self.state.dtype]

    def empty(self) -> StateRows:
        return StateRows(0, 0, np.empty((0, *self.row), self.dtype))

    def take(self, seq: int) -> None:
        """Begin a sequence. Raises ValueError when it is there."""
        if seq in self.held:
            raise ValueError(f"sequence {seq} has state {self.state.name} already")
        self.held[seq] = self.empty()

    def drop(self, seq: int) -> None:
        del self.held[seq]

    def read(self, seq: int) -> tuple[int, Array]:
        """(place of the first row, rows)."""
        return self.held[seq].first, self.held[seq].rows

    def write(self, seq: int, rows: Array, tokens: int) -> None:
        """``rows`` [n, ..] behind those that are there; the sequence has ``tokens`` tokens with them."""
        old = self.held[seq]
        if old.first + len(old.rows) + len(rows) != tokens:
            raise ValueError(f"state {self.state.name}: {len(rows)} rows after {old.tokens} tokens do not make {tokens}")
        self.held[seq] = StateRows(tokens, old.first, np.concatenate([old.rows, rows.astype(self.dtype)]))

    def can_truncate(self, seq: int, tokens: int) -> bool:
        """Whether the state of the first ``tokens`` tokens is still there."""
        return 0 <= tokens <= self.held[seq].tokens

    def truncate(self, seq: int, tokens: int) -> None:
        """Forget what came after the first ``tokens`` tokens. Raises ValueError when their state is gone."""
        if not self.can_truncate(seq, tokens):
            raise ValueError(f"state {self.state.name} of sequence {seq} cannot be cut back to {tokens} tokens")
        self.held[seq] = self.cut(self.held[seq], tokens)

    def cut(self, held: StateRows, tokens: int) -> StateRows:
        return StateRows(tokens, held.first, held.rows[: tokens - held.first])

    def checkpoint(self, seq: int) -> StateRows:
        """What a sequence holds now; later steps do not change it."""
        held = self.held[seq]
        return StateRows(held.tokens, held.first, held.rows.copy())

    def restore(self, seq: int, saved: StateRows) -> None:
        """Let ``seq``, begun or not, hold what was saved, of this or of another sequence."""
        self.held[seq] = StateRows(saved.tokens, saved.first, saved.rows.copy())

    def copy(self, source: int, target: int) -> None:
        self.restore(target, self.held[source])

    def from_bytes(self, data: bytes) -> StateRows:
        """What ``StateRows.to_bytes`` wrote. Raises ValueError when it is not of this state."""
        if len(data) < _HEAD.size:
            raise ValueError(f"state {self.state.name}: {len(data)} bytes are too few")
        tokens, first, rows = _HEAD.unpack_from(data)
        size = int(np.prod(self.row)) * self.dtype.itemsize
        if len(data) != _HEAD.size + rows * size or not self.holds(tokens, first, rows):
            raise ValueError(f"state {self.state.name}: {len(data)} bytes for {rows} rows of {size} after {tokens} tokens")
        return StateRows(tokens, first, np.frombuffer(data, self.dtype, offset=_HEAD.size).reshape(rows, *self.row))

    def holds(self, tokens: int, first: int, rows: int) -> bool:
        return first + rows == tokens


class WindowState(StepState):
    """Rows leave when the oldest query of a step has passed them, so that a step can be taken back."""

    def needed(self, tokens: int) -> int:
        """The place of the oldest row that the query after ``tokens`` tokens sees."""
        return max(0, tokens - self.state.limit + 1)

    def kept_rows(self, tokens: int) -> int:
        """A sequence holds more: all rows of its last step, and what the oldest query of that step saw before itself."""
        return min(tokens, self.state.limit)

    def write(self, seq: int, rows: Array, tokens: int) -> None:
        old = self.held[seq]
        first = max(old.first, self.needed(old.tokens))
        self.held[seq] = StateRows(old.tokens, first, old.rows[first - old.first :])
        super().write(seq, rows, tokens)

    def can_truncate(self, seq: int, tokens: int) -> bool:
        return super().can_truncate(seq, tokens) and self.held[seq].first <= self.needed(tokens)


class FixedState(StepState):
    """Rows of another axis than the tokens: cutting back tokens leaves them alone."""

    def kept_rows(self, tokens: int) -> int:
        return self.state.limit

    def write(self, seq: int, rows: Array, tokens: int) -> None:
        old = self.held[seq]
        if len(old.rows) + len(rows) > self.state.limit:
            raise ValueError(f"state {self.state.name} takes {self.state.limit} rows, not {len(old.rows) + len(rows)}")
        self.held[seq] = StateRows(tokens, 0, np.concatenate([old.rows, rows.astype(self.dtype)]))

    def can_truncate(self, seq: int, tokens: int) -> bool:
        return tokens >= 0

    def cut(self, held: StateRows, tokens: int) -> StateRows:
        return StateRows(tokens, 0, held.rows)

    def holds(self, tokens: int, first: int, rows: int) -> bool:
        return first == 0 and rows <= self.state.limit


class SlotState(StepState):
    """One array, zero at first: it stands for all tokens so far, so that only a checkpoint leads back."""

    def kept_rows(self, tokens: int) -> int:
        return 1

    def empty(self) -> StateRows:
        return StateRows(0, 0, np.zeros((1, *self.row), self.dtype))

    def write(self, seq: int, rows: Array, tokens: int) -> None:
        self.held[seq] = StateRows(tokens, 0, rows.astype(self.dtype).reshape(1, *self.row))

    def can_truncate(self, seq: int, tokens: int) -> bool:
        return tokens in (0, self.held[seq].tokens)

    def cut(self, held: StateRows, tokens: int) -> StateRows:
        return held if tokens else self.empty()

    def holds(self, tokens: int, first: int, rows: int) -> bool:
        return (first, rows) == (0, 1)


KINDS: Mapping[str, type[StepState]] = {"paged": StepState, "window": WindowState, "slot": SlotState, "fixed": FixedState}


class StepStates:
    """The states of a model's programs, by name, and how many tokens each sequence has."""

    def __init__(self, states: Iterable[State], dtype: type[np.floating[Any]] = np.float32) -> None:
        self.states = {state.name: KINDS[state.kind](state, dtype) for state in states}
        self.tokens: dict[int, int] = {}

    def nbytes(self, seqs: int, tokens: int) -> int:
        return sum(state.nbytes(seqs, tokens) for state in self.states.values())

    def take(self, seq: int) -> None:
        for state in self.states.values():
            state.take(seq)
        self.tokens[seq] = 0

    def drop(self, seq: int) -> None:
        for state in self.states.values():
            state.drop(seq)
        del self.tokens[seq]

    def can_truncate(self, seq: int, tokens: int) -> bool:
        return tokens <= self.tokens[seq] and all(state.can_truncate(seq, tokens) for state in self.states.values())

    def truncate(self, seq: int, tokens: int) -> None:
        """Cut all states back. Raises ValueError, and changes nothing, when one of them cannot."""
        if not self.can_truncate(seq, tokens):
            raise ValueError(f"sequence {seq} of {self.tokens[seq]} tokens cannot be cut back to {tokens}")
        for state in self.states.values():
            state.truncate(seq, tokens)
        self.tokens[seq] = tokens

    def checkpoint(self, seq: int) -> dict[str, StateRows]:
        return {name: state.checkpoint(seq) for name, state in self.states.items()}

    def restore(self, seq: int, saved: Mapping[str, StateRows], tokens: int) -> None:
        """Let ``seq`` go on after the first ``tokens`` tokens of the sequence whose states were saved then."""
        for name, state in self.states.items():
            state.restore(seq, saved[name])
        self.tokens[seq] = tokens

    def copy(self, source: int, target: int) -> None:
        self.restore(target, self.checkpoint(source), self.tokens[source])

    def to_bytes(self, seq: int) -> dict[str, bytes]:
        return {name: state.held[seq].to_bytes() for name, state in self.states.items()}

    def from_bytes(self, seq: int, data: Mapping[str, bytes], tokens: int) -> None:
        """Raises ValueError, and changes nothing, when the bytes are not of these states."""
        self.restore(seq, {name: state.from_bytes(data[name]) for name, state in self.states.items()}, tokens)
