"""One row of each sequence from the rows of its tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ferrum.codegen.kernels.arrays import ItemKernel, Operand, Operands
from ferrum.codegen.kernels.cases import Case, counts
from ferrum.codegen.kernels.trials import draw, rows_of
from ferrum.codegen.walk import Walk
from ferrum.graphs.ir import Node
from ferrum.graphs.numpy_pool import pooled

_LENGTHS = (1, 7, 3, 40)  # of a trial's sequences


@dataclass(frozen=True)
class Pool(ItemKernel):
    """``x [tokens, width], rows [samples] -> [samples, width]``: each result of the sequence that its row is in, ``how`` as
    ``ferrum/graphs/infer_pool.py`` has it."""

    stem: ClassVar[str] = "pool"
    elements: ClassVar[bool] = True
    x: Operand
    rows: Operand
    out: Operand
    how: str

    @property
    def flops(self) -> int:
        return self.x.size

    def context(self) -> dict[str, object]:
        return super().context() | {"width": self.x.size}

    @property
    def args(self) -> tuple[str, ...]:
        return (*super().args, "input:num_seqs", "input:query_start")

    def reference(self, *read: NDArray[Any]) -> NDArray[Any]:
        starts = np.cumsum((0, *_LENGTHS))
        return np.stack([pooled(read[0][begin:end], self.how) for begin, end in zip(starts, starts[1:], strict=False)])

    def case(self, random: np.random.Generator, rows: int = 0, **_: Any) -> Case:
        starts, lies = np.cumsum((0, *_LENGTHS)).astype(np.int32), self.x.lies()
        arrays = draw(random, [lies], int(starts[-1]))
        wanted = starts[1:] - 1 - random.integers(0, _LENGTHS)  # any row of each
        arrays |= {self.rows.arg: wanted.astype(np.int32), "input:query_start": starts}
        seen = lies.seen(arrays[lies.arg], int(starts[-1])).reshape(int(starts[-1]), -1).astype(np.float64)
        return rows_of(arrays, self.reference(seen), counts(int(starts[-1]), len(_LENGTHS), len(_LENGTHS)), "samples")

    def why(self) -> str:
        return f"generic: {self.how} of a sequence's rows, columns side by side"


def choose(walk: Walk, node: Node) -> None:
    found = Operands(walk, node)
    x, rows = found.read
    found.add(Pool(x, rows, found.result(), str(node.attrs["how"])))
