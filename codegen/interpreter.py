"""The numpy interpreter as a device: steps of a graph with states of any kind, held where the engine says.

Blocks and places are real memory here: what a sequence holds is read through its block table and its places before a step and
written back after it. All of it is NaN until it is written; a block becomes so again when its first row is written, and a slot
knows how many tokens it stands for. So an engine that mixes places, goes on from a checkpoint of another position or shares what
it must not gets other answers, or an AssertionError. Rows are computed one by one: no answer's bits depend on what else is in a
step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from msgspec import structs
from numpy.typing import NDArray

from ferrum.devices.base import Limits, RequestArray, StateGroup, StepBuffers, row_limits
from ferrum.graphs.interpret import Weights, run_step
from ferrum.graphs.ir import Graph, State
from ferrum.graphs.step_states import Array, SlotState, StateRows, StepState, StepStates, WindowState
from ferrum.pack.step import INPUTS, OUTPUTS, RowCounts, StepArray, shape_of

DTYPE = np.float64
PER_TOKEN = ("paged", "window")


@dataclass(frozen=True)
class Programs:
    """``step``: a graph with its tail. ``fill``: what a request brings to rows of the fixed states."""

    step: Graph
    weights: Weights
    fill: Graph | None = None


class InterpreterExecutor:
    """A ``FillingExecutor`` over graphs.

    ``checkpoint``: tokens between checkpoints of slots. ``checkpoint_bytes``: memory for them beside what sequences need.
    ``window_blocks``: blocks of each window.
    """

    def __init__(
        self,
        programs: Programs,
        limits: Limits,
        checkpoint: int = 0,
        checkpoint_bytes: int = 0,
        window_blocks: int = 0,
    ) -> None:
        self.programs = programs
        self.members = members_of(programs.step)
        declared = {
            "slot": lambda states: slot_group(states, limits, checkpoint, checkpoint_bytes),
            "fixed": lambda states: fixed_group(states, limits, programs.fill),
            "window": lambda states: StateGroup("window", window_blocks or limits.num_blocks, window=states[0].limit),
        }
        self.limits = replace(limits, groups=tuple(declared[states[0].kind](states) for states in self.members))
        self.buffers = StepBuffers(self.limits)
        self.index = {state.name: index for index, states in enumerate(self.members) for state in states}
        self.memory = {state.name: self._room(state) for state in programs.step.states}
        self.reached = [[-1] * group.count for group in self.limits.groups]  # tokens that each slot stands for
        self.lengths = [[0] * group.count for group in self.limits.groups]  # rows of each fixed place
        self._logits = np.zeros((limits.max_samples, limits.vocab_size), np.float32)

    def step(self) -> None:
        b, graph = self.buffers, self.programs.step
        states, seqs = StepStates(graph.states, DTYPE), range(b.num_seqs)
        for s in seqs:
            self._load(states, s, int(b.positions[b.query_start[s]]))
        rows = structs.replace(row_limits(self.limits), tokens=b.num_tokens, samples=b.num_samples, seqs=b.num_seqs)
        inputs = {array.name: getattr(b, array.name)[within(array, rows)] for array in INPUTS}
        starts = {"tokens": b.query_start[: b.num_seqs + 1].tolist()}
        out = run_step(graph, inputs, self.programs.weights, states, seqs, starts, DTYPE, each_row=True)
        for s in seqs:
            self._store(states, s, int(b.query_start[s + 1] - b.query_start[s]))
        logits = out[graph.outputs[0]]
        assert np.isfinite(logits).all(), "a step reads what was never written"
        self._logits[: b.num_samples] = logits
        for array in OUTPUTS:
            getattr(b, array.name)[within(array, rows)] = out[array.name]

    def logits(self) -> NDArray[np.float32]:
        return self._logits[: self.buffers.num_samples]

    def copy_block(self, source: int, target: int) -> None:
        for state in (state for state in self.programs.step.states if state.kind == "paged"):
            self.memory[state.name][target] = self.memory[state.name][source]

    def copy_place(self, group: int, source: int, target: int) -> None:
        assert source != target and self.limits.groups[group].kind == "slot", "only slots change, so only they are copied"
        for state in self.members[group]:
            self.memory[state.name][target] = self.memory[state.name][source]
        self.reached[group][target] = self.reached[group][source]

    def fill_place(self, group: int, place: int, inputs: Mapping[str, NDArray[np.float32]]) -> None:
        assert self.limits.groups[group].kind == "fixed", "only fixed places are filled"
        self.lengths[group][place] = 0
        for state in self.members[group]:
            self.memory[state.name][place] = np.nan
        fill = self.programs.fill
        if not inputs or fill is None:
            return
        states = StepStates(fill.states, DTYPE)
        states.take(0)
        starts = {str(value.shape[0]): (0, len(inputs[value.name])) for value in fill.inputs}
        rows = {name: array.astype(DTYPE) for name, array in inputs.items()}
        run_step(fill, rows, self.programs.weights, states, (0,), starts, DTYPE, each_row=True)
        for state in self.members[group]:
            found = states.states[state.name].read(0)[1]
            self.lengths[group][place] = len(found)
            self.memory[state.name][place, : len(found)] = found

    def close(self) -> None:
        self.memory.clear()

    def _load(self, states: StepStates, s: int, before: int) -> None:
        """Let sequence ``s`` of a step hold what lies in its blocks and places after ``before`` tokens."""
        saved = {name: self._held(state, s, before) for name, state in states.states.items()}
        states.restore(s, saved, before)

    def _held(self, state: StepState, s: int, before: int) -> StateRows:
        name, memory = state.state.name, self.memory[state.state.name]
        if state.state.kind in PER_TOKEN:
            first = state.needed(before) if isinstance(state, WindowState) else 0
            return StateRows(before, first, memory[self._rows(name, s, first, before)])
        group, place = self._place(name, s)
        if state.state.kind == "fixed":
            return StateRows(before, 0, memory[place, : self.lengths[group][place]])
        reached = self.reached[group][place]
        assert before in (0, reached), f"a slot after {reached} tokens is read as if after {before}"
        return StateRows(before, 0, memory[place : place + 1]) if before else state.empty()

    def _store(self, states: StepStates, s: int, new: int) -> None:
        after = states.tokens[s]
        for name, state in states.states.items():
            rows = state.read(s)[1]
            if isinstance(state, SlotState):
                group, place = self._place(name, s)
                self.memory[name][place] = rows[0]
                self.reached[group][place] = after
            elif state.state.kind in PER_TOKEN:
                blocks, offsets = self._rows(name, s, after - new, after)
                self.memory[name][blocks[offsets == 0]] = np.nan
                self.memory[name][blocks, offsets] = rows[len(rows) - new :]

    def _rows(self, name: str, s: int, start: int, end: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Blocks and rows in them of the tokens ``start`` to ``end`` of sequence ``s``."""
        at, size = np.arange(start, end), self.limits.block_size
        blocks = self.buffers.block_table[s, 1 + self.index.get(name, -1), at // size]
        assert (blocks >= 0).all(), "a block that was passed is used"
        return blocks, at % size

    def _place(self, name: str, s: int) -> tuple[int, int]:
        """The group of a state, and the place of sequence ``s`` in it."""
        group = self.index[name]
        return group, int(self.buffers.block_table[s, 1 + group, 0])

    def _room(self, state: State) -> Array:
        """Memory of one state, all NaN: rows of blocks, or what a place of its group holds."""
        count = self.limits.groups[self.index[state.name]].count if state.name in self.index else self.limits.num_blocks
        rows = {"slot": (), "fixed": (state.limit,)}.get(state.kind, (self.limits.block_size,))
        return np.full((count, *rows, *(int(dim) for dim in state.shape)), np.nan, DTYPE)


def within(array: StepArray, rows: RowCounts) -> tuple[slice, ...]:
    """The part of an array that a step with so many rows uses."""
    return tuple(slice(n) for n in shape_of(array, rows))


def members_of(graph: Graph) -> list[list[State]]:
    """The states of each group: all of one kind, of windows those of one width. Paged states are in none."""
    groups: dict[tuple[str, int], list[State]] = {}
    for state in graph.states:
        if state.kind != "paged":
            groups.setdefault((state.kind, state.limit if state.kind == "window" else 0), []).append(state)
    return list(groups.values())


def slot_group(states: list[State], limits: Limits, checkpoint: int, budget: int) -> StateGroup:
    return StateGroup("slot", limits.max_seqs + budget // StepStates(states, DTYPE).nbytes(1, 1), checkpoint)


def fixed_group(states: list[State], limits: Limits, fill: Graph | None) -> StateGroup:
    most = min(state.limit for state in states)
    brought = tuple(RequestArray(value.name, int(value.shape[1]), most) for value in (fill.inputs if fill else ()))
    return StateGroup("fixed", limits.max_seqs, inputs=brought)
