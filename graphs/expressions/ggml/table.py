"""All block types by name: their sizes and the functions that take them apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from numpy.typing import NDArray

from ferrum.graphs.expressions.ggml import codebooks as c
from ferrum.graphs.expressions.ggml import k_quants as k
from ferrum.graphs.expressions.ggml import plain as p
from ferrum.graphs.expressions.ggml import tables as t
from ferrum.graphs.expressions.ggml.fields import Bytes

Part: TypeAlias = Literal["codes", "scales", "mins", "steps", "min_steps"]
Take: TypeAlias = Callable[[Bytes], NDArray[Any]]


@dataclass(frozen=True, slots=True)
class BlockType:
    """``size`` values in ``nbytes`` bytes; ``group`` neighbours share a scale. ``bits``: of a code, signed without ``mins``.

    ``stored``: the dtype of scales, f32 where they are computed. Those of u6 and i8 are whole numbers, and ``mins``
    too: a block has a float16 step for each of both.
    """

    size: int
    nbytes: int
    group: int
    bits: int
    codes: Take
    scales: Take
    mins: Take | None = None
    stored: str = "f32"
    steps: Take | None = None
    min_steps: Take | None = None

    def take(self, part: Part, blocks: Bytes) -> NDArray[Any]:
        """``[blocks, nbytes]`` → ``[blocks, values of the part]``."""
        function = getattr(self, part)
        assert function is not None
        return function(blocks)  # type: ignore[no-any-return]

    def count(self, part: Part) -> int:
        """Values of a part in a block."""
        if part in ("steps", "min_steps"):
            return 1
        return self.size if part == "codes" else self.size // self.group


BLOCKS: dict[str, BlockType] = {
    "q1_0": BlockType(128, 18, 128, 2, p.q1_0, p.first_half, stored="f16"),
    "q4_0": BlockType(32, 18, 32, 4, p.q4_0, p.first_half, stored="f16"),
    "q4_1": BlockType(32, 20, 32, 4, p.q4_1, p.first_half, p.second_half, stored="f16"),
    "q5_0": BlockType(32, 22, 32, 5, p.q5_0, p.first_half, stored="f16"),
    "q5_1": BlockType(32, 24, 32, 5, p.q5_1, p.first_half, p.second_half, stored="f16"),
    "q8_0": BlockType(32, 34, 32, 8, p.q8_0, p.first_half, stored="f16"),
    "q2_k": BlockType(256, 84, 16, 2, k.q2, k.q2_scales, k.q2_mins),
    "q3_k": BlockType(256, 110, 16, 3, k.q3, k.q3_scales),
    "q4_k": BlockType(256, 144, 32, 4, k.q4, k.q45_scales, k.q45_mins, "u6", p.first_half, k.q45_min_steps),
    "q5_k": BlockType(256, 176, 32, 5, k.q5, k.q45_scales, k.q45_mins, "u6", p.first_half, k.q45_min_steps),
    "q6_k": BlockType(256, 210, 16, 6, k.q6, k.q6_scales, stored="i8", steps=p.last_half),
    "q8_k": BlockType(256, 292, 256, 8, p.q8_k, p.q8_k_scales),
    "iq1_s": BlockType(256, 50, 32, 5, c.iq1_s, c.iq1_s_scales),
    "iq1_m": BlockType(256, 56, 16, 5, c.iq1_m, c.iq1_m_scales),
    "iq2_xxs": BlockType(256, 66, 32, 7, c.iq2_xxs, c.iq2_xxs_scales),
    "iq2_xs": BlockType(256, 74, 16, 7, c.iq2_xs, c.iq2_xs_scales),
    "iq2_s": BlockType(256, 82, 16, 7, c.iq2_s, c.iq2_s_scales),
    "iq3_xxs": BlockType(256, 98, 32, 7, c.iq3_xxs, c.iq3_xxs_scales),
    "iq3_s": BlockType(256, 110, 32, 5, c.iq3_s, c.iq3_s_scales),
    "iq4_nl": BlockType(32, 18, 32, 8, t.iq4_nl, p.first_half, stored="f16"),
    "iq4_xs": BlockType(256, 136, 32, 8, t.iq4_xs, t.iq4_xs_scales),
    "mxfp4": BlockType(32, 17, 32, 5, t.mxfp4, t.mxfp4_scales),
    "nvfp4": BlockType(64, 36, 16, 5, t.nvfp4, t.nvfp4_scales),
    "tq1_0": BlockType(256, 54, 256, 2, p.tq1_0, p.last_half, stored="f16"),
    "tq2_0": BlockType(256, 66, 256, 3, p.tq2_0, p.last_half, stored="f16"),
}
