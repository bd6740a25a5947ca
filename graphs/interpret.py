"""The numpy interpreter: the oracle for every pass and every kernel.

It runs a graph of any stage, node by node, in float32 or float64. Values are freed after their last use; a weight matrix is
multiplied in row chunks and an embedding is read by rows, so no large weight is ever expanded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ferrum.graphs.dims import evaluate as evaluate_dim
from ferrum.graphs.expressions.evaluate import Arrays, ExprRows, Reader, evaluate, pick, whole
from ferrum.graphs.ir import STATE_KINDS, Graph, Param
from ferrum.graphs.numpy_ops import KERNELS
from ferrum.graphs.numpy_run import Array, Kernel, KvState, Rows, Run, Sequences, Weights
from ferrum.graphs.numpy_state import Version
from ferrum.graphs.rewrite import live
from ferrum.graphs.step_states import StepStates

__all__ = ["Array", "ArrayWeights", "KvState", "Rows", "Weights", "interpret", "reference_greedy", "reference_logits", "run_step"]


class SourceWeights:
    """Parameters as their expressions say, over a checkpoint or over arrays; ``bound`` are external ones by name."""

    def __init__(self, reader: Reader, bound: Mapping[str, Array] | None = None) -> None:
        self.reader = reader
        self.bound = bound or {}

    def get(self, param: Param) -> Array:
        if param.data is not None:
            return param.data
        return self.bound[param.name] if param.weight is None else evaluate(param.weight, self.reader, whole(param.shape))

    def rows(self, param: Param, ids: Rows) -> Array:
        if param.weight is None:
            return np.asarray(self.get(param)[ids])
        source = ExprRows(param.weight, self.reader)
        return source.values(slice(*ids.indices(param.shape[0]))) if isinstance(ids, slice) else pick(source, ids)


class ArrayWeights(SourceWeights):
    """Weights held in memory, by checkpoint name."""

    def __init__(self, arrays: Mapping[str, Array], bound: Mapping[str, Array] | None = None) -> None:
        super().__init__(Arrays(arrays), bound)


def bind_dims(graph: Graph, inputs: Mapping[str, Array]) -> dict[str, int]:
    """Sizes of the symbolic dims, from the inputs' shapes. Raises ValueError when an input does not fit its declaration."""
    dims: dict[str, int] = {}
    for value in (value for value in graph.inputs if value.name in inputs):
        array = inputs[value.name]
        if len(array.shape) != len(value.shape):
            raise ValueError(f"input {value.name} needs {len(value.shape)} axes, not {len(array.shape)}")
        dims |= {d: n for d, n in zip(value.shape, array.shape, strict=True) if isinstance(d, str) and d not in dims}
    for value in (value for value in graph.inputs if value.name in inputs):
        for dim, size in zip(value.shape, inputs[value.name].shape, strict=True):
            if evaluate_dim(dim, dims) != size:
                raise ValueError(f"input {value.name}: {dim} is {size} here and {evaluate_dim(dim, dims)} elsewhere")
    if "batch" in dims and "seq" in dims:
        dims.setdefault("tokens", dims["batch"] * dims["seq"])
    return dims


def interpret(
    graph: Graph,
    inputs: Mapping[str, Array],
    weights: Weights,
    dtype: type[np.floating[Any]] = np.float32,
    kv: KvState | None = None,
    query_start: Sequence[int] | None = None,
    keep: Sequence[str] = (),
    observe: Callable[[str, Array], None] | None = None,
    wanted: Sequence[str] = (),
    kernels: Mapping[str, Kernel] = KERNELS,
) -> dict[str, Array]:
    """The outputs of ``graph`` (and the values named in ``keep``) for ``inputs`` by name, computed in ``dtype``.

    With ``wanted`` only these outputs: what they do not need is neither computed nor asked of ``inputs``.

    For a paged graph the tokens of sequence ``s`` are ``query_start[s]:query_start[s + 1]`` (default: one sequence). States
    begin empty; for a finished graph ``kv`` holds, and receives, what the earlier and the new tokens keep. ``observe`` is shown
    each node's result by name; it is gone after its last use. ``kernels``: another arithmetic than the interpreter's own.
    """
    starts = query_start if query_start is not None else (0, len(inputs["tokens"]) if "tokens" in inputs else 0)
    kv, ids = KvState() if kv is None else kv, tuple(range(len(starts) - 1))
    if kv.states is None:
        kv.states = StepStates(graph.states, dtype)
        for seq in ids:
            kv.states.take(seq)
    sequences = Sequences(ids, {"tokens": starts}, (0,) * len(ids))
    return execute(graph, inputs, weights, dtype, kv.states, sequences, kv, False, keep, observe, wanted, kernels)


def run_step(
    graph: Graph,
    inputs: Mapping[str, Array],
    weights: Weights,
    states: StepStates,
    seqs: Sequence[int],
    starts: Mapping[str, Sequence[int]],
    dtype: type[np.floating[Any]] = np.float32,
    each_row: bool = False,
) -> dict[str, Array]:
    """One step of the sequences ``seqs``, which ``states`` holds and which have one token more for each of theirs after it.

    ``starts``: for each ragged axis (``tokens``) the first row of each sequence and the end of the last. With ``each_row`` no
    row's bits depend on what else is in the step. Raises ValueError when inputs or rows do not fit.
    """
    sequences = Sequences(tuple(seqs), starts, tuple(states.tokens[seq] for seq in seqs))
    out = execute(graph, inputs, weights, dtype, states, sequences, KvState(), each_row=each_row)
    states.tokens.update(zip(seqs, sequences.after(), strict=True))
    return out


def execute(
    graph: Graph,
    inputs: Mapping[str, Array],
    weights: Weights,
    dtype: type[np.floating[Any]],
    states: StepStates,
    sequences: Sequences,
    kv: KvState,
    each_row: bool = False,
    keep: Sequence[str] = (),
    observe: Callable[[str, Array], None] | None = None,
    wanted: Sequence[str] = (),
    kernels: Mapping[str, Kernel] = KERNELS,
) -> dict[str, Array]:
    results_of = {*(wanted or graph.outputs), *keep}
    nodes, needed = live(graph.nodes, results_of) if wanted else (graph.nodes, {value.name for value in graph.inputs})
    given = [value.name for value in graph.inputs if value.name in needed or value.name in inputs]
    env: dict[str, Any] = {name: np.asarray(inputs[name]) for name in given}
    dims = bind_dims(graph, env) | {"seqs": len(sequences.ids)}
    env |= {state.name: Version(states.states[state.name]) for state in graph.states}
    params = {p.name: p for p in graph.params}
    run = Run(weights, dtype, env, graph.values(), dims, params, kv, sequences, each_row)
    last_use = {name: i for i, node in enumerate(nodes) for name in node.inputs}
    out: dict[str, Array] = {}
    for i, node in enumerate(nodes):
        results = kernels[node.op](run, node)
        for value, result in zip(node.outputs, results if isinstance(results, tuple) else (results,), strict=True):
            env[value.name] = result
            if isinstance(result, Version):
                continue
            if observe is not None:
                observe(value.name, result)
            if value.name in results_of:
                out[value.name] = result
        for name in {*node.inputs, *(v.name for v in node.outputs)}:
            if name != "positions" and last_use.get(name, -1) <= i and name in env:
                del env[name]
    for name in results_of - out.keys():
        if run.types[name].dtype not in STATE_KINDS:
            out[name] = np.asarray(inputs[name]) if name in inputs else run.get(name)
    return out


def reference_logits(
    graph: Graph,
    tokens: Sequence[int],
    weights: Weights,
    dtype: type[np.floating[Any]] = np.float32,
    last_only: bool = False,
) -> Array:
    """Logits ``[len(tokens), vocab]`` of a finished (paged) graph for one sequence; ``[1, vocab]`` with ``last_only``."""
    rows = np.arange(len(tokens), dtype=np.int32)
    inputs = {
        "tokens": np.asarray(tokens, np.int32),
        "positions": rows,
        "sample_rows": rows[-1:] if last_only else rows,
    }
    logits = graph.outputs[0]
    return interpret(graph, inputs, weights, dtype, wanted=(logits,))[logits][-1 if last_only else 0 :]


def reference_greedy(
    graph: Graph,
    prompts: Sequence[Sequence[int]],
    steps: int,
    weights: Weights,
    dtype: type[np.floating[Any]] = np.float32,
    observe: Callable[[str, Array], None] | None = None,
) -> tuple[list[list[int]], Array]:
    """Greedy continuations of several prompts, ``steps`` tokens each, and the prompts' last rows ``[len(prompts), vocab]``.

    Each step reads the weights once for all prompts; earlier keys and values are kept. ``observe`` is shown the results of
    the prompts' step, whose tokens lie one prompt after the other.
    """
    kv = KvState()
    pending = [list(prompt) for prompt in prompts]
    done = [0] * len(pending)
    out: list[list[int]] = [[] for _ in pending]
    first = np.empty((0, 0), dtype)
    for step in range(max(steps, 1)):
        starts = np.concatenate([[0], np.cumsum([len(p) for p in pending])])
        positions = np.concatenate([np.arange(n, n + len(p)) for n, p in zip(done, pending, strict=True)])
        inputs = {
            "tokens": np.concatenate(pending).astype(np.int32),
            "positions": positions.astype(np.int32),
            "sample_rows": (starts[1:] - 1).astype(np.int32),
        }
        ran = interpret(graph, inputs, weights, dtype, kv, starts.tolist(), observe=observe, wanted=graph.outputs[:1])
        logits = ran[graph.outputs[0]]
        observe = None
        first = logits if step == 0 else first
        done = [n + len(p) for n, p in zip(done, pending, strict=True)]
        chosen = logits.argmax(axis=-1).tolist()
        for row, token in enumerate(chosen[: len(out)] if steps else []):
            out[row].append(int(token))
        pending = [[int(token)] for token in chosen]
    return out, first
