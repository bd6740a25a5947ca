"""Weights on their way into a pack: read mapped, encoded chunk by chunk on several threads, written in order."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np

from ferrum.codegen.finite import Finite
from ferrum.codegen.layouts import Parallel, PlainLayout, parse_layout
from ferrum.codegen.plan import Tensor
from ferrum.errors import FerrumError
from ferrum.graphs.expressions import evaluate
from ferrum.graphs.expressions.sources import External
from ferrum.graphs.expressions.wide import Wide
from ferrum.graphs.ir import Graph, Param
from ferrum.graphs.weights.checkpoint import Checkpoint
from ferrum.pack.pages import WINDOW
from ferrum.pack.reader import open_pack
from ferrum.pack.writer import MemberWriter

T = TypeVar("T")
Progress: TypeAlias = Callable[[int, int], None]


def refuse_external(graph: Graph) -> Graph:
    """``graph`` itself. Raises FerrumError for a parameter that a pack would not hold and nothing would bind."""
    for param in graph.params:
        if isinstance(param.source, External):
            what = f"{param.name} is bound at {param.source.bound} and no device binds parameters yet"
            raise FerrumError("parameter-external", what, f"graph {graph.name}", "give it a source in the checkpoint")
    return graph


def source_of(param: Param, reader: evaluate.Reader) -> evaluate.Pieces:
    """What a layout encodes; an expression that lies across its tensors is read in wide runs."""
    if param.data is not None:
        return evaluate.in_memory(param.data.astype(np.float32))
    assert param.weight is not None
    source = evaluate.ExprRows(param.weight, reader)
    return Wide(source) if evaluate.lies_across(param.weight) else source


def write_weights(
    graph: Graph, tensors: list[Tensor], checkpoint: Checkpoint, sink: MemberWriter, jobs: int, progress: Progress | None = None
) -> None:
    """Write every tensor at its offset. Memory: a few chunks per job, the scales of one tensor, ``WINDOW`` of the checkpoint.

    Raises FerrumError (checkpoint-corrupt) for a weight that is NaN, and for one of a matrix that is infinite.
    """
    params = {p.name: p for p in graph.params}
    total, read = sum(t.nbytes for t in tensors), 0.0
    with ThreadPoolExecutor(jobs or os.cpu_count() or 1) as pool:
        for tensor in tensors:
            sink.pad_to(tensor.offset)
            layout = parse_layout(tensor.layout, tensor.format, tensor.shape)
            source = source_of(params[tensor.name], checkpoint)
            if (expr := params[tensor.name].weight) is not None:
                source = Finite(source, expr, checkpoint, matrix=tensor.layout != PlainLayout.name)
            for piece in layout.encode(source, _ordered(pool)):
                sink.write(piece)
                read += 4 * math.prod(tensor.shape) * piece.nbytes / layout.nbytes
                if read >= WINDOW:
                    checkpoint.give_back()
                    read = 0.0
            if progress:
                progress(tensor.offset + tensor.nbytes, total)
        sink.pad_to(-(-sink.tell() // 64) * 64)
    checkpoint.give_back()


def copy_weights(source: Path, sink: MemberWriter) -> None:
    """The weights of a finished pack of the same contract, byte for byte."""
    with open_pack(source) as pack:
        weights = pack.weights
        for start in range(0, weights.nbytes, WINDOW):
            sink.write(weights[start : start + WINDOW])
            pack.give_back()


def _ordered(pool: ThreadPoolExecutor) -> Parallel:
    """Results in order; at most two per core are under way."""

    def run(function: Callable[[int], T], items: Iterable[int]) -> Iterator[T]:
        pending: deque[Future[T]] = deque()
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > 2 * (os.cpu_count() or 1):
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

    return run
