"""Weights on their way into a pack: read mapped, encoded chunk by chunk on several threads, written in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ferrum.codegen.layouts import Array, to_f32
from ferrum.codegen.plan import Tensor
from ferrum.codegen.row_layout import Layout, RowLayout, encode, gather, parse_layout
from ferrum.graphs.ir import Graph, Param
from ferrum.pack.reader import open_pack

# Source values per chunk: small enough to stay in a core's cache while a dozen passes go over it.
_CHUNK_VALUES = 1 << 18


class Reader(Protocol):
    """A checkpoint: arrays by name, mapped; bfloat16 as uint16 bits."""

    def read(self, name: str) -> Array: ...


class Sink(Protocol):
    def write(self, data: Any) -> int: ...
    def tell(self) -> int: ...
    def pad_to(self, offset: int) -> None: ...


class JoinedRows:
    """Several arrays one below the other, joined only for the rows that are asked for."""

    def __init__(self, parts: Sequence[Array]) -> None:
        self.parts = parts
        self.starts = np.cumsum([0, *(len(p) for p in parts)])

    def __getitem__(self, rows: slice) -> Array:
        pieces = []
        for part, start in zip(self.parts, self.starts, strict=False):
            low, high = max(rows.start - start, 0), min(rows.stop - start, len(part))
            if low < high:
                pieces.append(to_f32(part[low:high]))
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def source_rows(param: Param, reader: Reader) -> JoinedRows:
    if param.data is not None:
        return JoinedRows([np.array(param.data, np.float32)])
    return JoinedRows([reader.read(name) for name in param.sources])


def write_weights(
    graph: Graph, tensors: list[Tensor], reader: Reader, sink: Sink, jobs: int, progress: Callable[[int, int], None] | None = None
) -> None:
    """Write every tensor at its offset. Memory: a few chunks per job, and the scales of one tensor."""
    params = {p.name: p for p in graph.params}
    total = sum(t.nbytes for t in tensors)
    with ThreadPoolExecutor(jobs or os.cpu_count() or 1) as pool:
        for tensor in tensors:
            sink.pad_to(tensor.offset)
            rows = source_rows(params[tensor.name], reader)
            if tensor.layout == "rows":
                sink.write(np.ascontiguousarray(rows[slice(0, tensor.shape[0])], np.float32))
            else:
                layout = parse_layout(tensor.layout, tensor.format, (tensor.shape[0], tensor.shape[1]))
                _write_matrix(rows, layout, sink, pool, tensor.offset)
            if progress:
                progress(tensor.offset + tensor.nbytes, total)
        sink.pad_to(-(-sink.tell() // 64) * 64)


def copy_weights(source: Path, sink: Sink) -> None:
    """The weights of a finished pack of the same contract, byte for byte."""
    with open_pack(source) as pack:
        sink.write(pack.weights)


def _write_matrix(rows: JoinedRows, layout: Layout, sink: Sink, pool: ThreadPoolExecutor, offset: int) -> None:
    scales: list[Array] = []
    zeros: list[Array] = []
    for data, scale, zero in _encoded(rows, layout, pool):
        sink.write(data)
        if scale is not None:
            scales.append(scale)
        if zero is not None:
            zeros.append(zero)
    if isinstance(layout, RowLayout):
        for parts, start in ((scales, layout.scale_offset), (zeros, layout.zero_offset)):
            if parts:
                sink.pad_to(offset + start)
                sink.write(np.concatenate(parts))


def _encoded(rows: JoinedRows, layout: Layout, pool: ThreadPoolExecutor) -> Iterator[tuple[Array, Array | None, Array | None]]:
    """Encoded runs of units in order; at most two per core are under way."""
    step = max(1, _CHUNK_VALUES // (layout.unit_rows * layout.padded_k))

    def encoded(first: int) -> tuple[Array, Array | None, Array | None]:
        return encode(gather(rows, layout, first, min(step, layout.units - first)), layout)  # type: ignore[arg-type]

    pending: deque[Future[tuple[Array, Array | None, Array | None]]] = deque()
    for first in range(0, layout.units, step):
        pending.append(pool.submit(encoded, first))
        if len(pending) > 2 * (os.cpu_count() or 1):
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()
