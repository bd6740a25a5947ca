"""What the layers of a model compute for the self-test's prompts: a member of the pack, a sketch of each value.

What a sketch is: ``ferrum/proof/sketch.py``. A few numbers a value tell how far a device is from the interpreter, layer by layer,
without the values themselves being in the pack.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from ferrum.pack.check import damaged

PROJECTIONS = 8  # sums of a sketch
_MAX_WIDTH = 1 << 24


class LayerPoint(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """A value of a step and where it can be seen: rows at the start of slot ``slot`` once launch ``launch`` has run.

    Launches and slots count as in the code's own tables. Rows are ``row_bytes`` apart and start with ``width`` numbers.
    ``layer`` is -1 for what belongs to none; ``part`` is e.g. ``mlp.down_proj``.
    """

    layer: int
    part: str
    launch: int
    slot: int
    width: int
    row_bytes: int
    dtype: Literal["f32", "bf16"]

    def __str__(self) -> str:
        return self.part if self.layer < 0 else f"layer {self.layer}: {self.part}"

    def rows(self, memory: NDArray[np.uint8], tokens: int) -> NDArray[np.float32]:
        """The value as float32 ``[tokens, width]``; ``memory``: the slot's first ``tokens * row_bytes`` bytes."""
        rows = memory[: tokens * self.row_bytes].reshape(tokens, self.row_bytes)
        if self.dtype == "f32":
            return rows.view(np.float32)[:, : self.width]
        return (rows.view(np.uint16)[:, : self.width].astype(np.uint32) << 16).view(np.float32)


class LayerTest(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """``sketches[case][point]``: the norm, then the sums.

    A deviation is the norm of the difference over that of the value. Beyond ``tolerance`` a layer is at fault when the
    answers are wrong; beyond ``limit`` it is at fault whatever the answers are.
    """

    tolerance: float
    limit: float
    points: list[LayerPoint]
    sketches: list[list[list[float]]]


def read_layer_test(data: bytes | memoryview, num_cases: int, where: str) -> LayerTest:
    """Every number checked; ``where``: pack and member. Raises FerrumError naming the field."""
    try:
        test = msgspec.json.decode(data, type=LayerTest)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise damaged(f"not a test of layers: {error}", where) from None
    for field, problem in _problems(test, num_cases):
        raise damaged(problem, f"{where}: {field}")
    return test


def _problems(test: LayerTest, num_cases: int) -> Iterator[tuple[str, str]]:
    if not 0 < test.tolerance <= test.limit <= 1:
        yield "tolerance", f"{test.tolerance} and the limit {test.limit} are not between 0 and 1, one after the other"
    last = 0
    for index, point in enumerate(test.points):
        size = 4 if point.dtype == "f32" else 2
        if not 0 < point.width <= point.row_bytes // size <= _MAX_WIDTH or point.row_bytes % size:
            yield f"points[{index}]", f"{point.width} numbers of {point.dtype} do not fit into rows of {point.row_bytes} bytes"
        if not last <= point.launch < 1 << 31 or not 0 <= point.slot < 1 << 31:
            yield f"points[{index}]", "the launches are not in order, or a number is out of range"
        last = point.launch
    if len(test.sketches) != num_cases:
        yield "sketches", f"{len(test.sketches)} for {num_cases} cases of the self-test"
    for index, case in enumerate(test.sketches):
        if len(case) != len(test.points) or any(len(numbers) != 1 + PROJECTIONS for numbers in case):
            yield f"sketches[{index}]", f"there must be {1 + PROJECTIONS} numbers for each of the {len(test.points)} points"
