"""Which layer of a loaded pack is the first that does not compute what the interpreter did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeGuard

import numpy as np

from ferrum.devices.base import Executor, SteppingExecutor
from ferrum.pack.layers import PROJECTIONS, LayerTest
from ferrum.pack.schema import SelfTestCase
from ferrum.proof.one_sequence import block_table, chunks, describe
from ferrum.proof.sketch import deviation, sketch

_JUMP = 2


def shows_layers(executor: Executor) -> TypeGuard[SteppingExecutor]:
    """Whether a device can stop between launches; one that replays a recorded step gives logits only."""
    return hasattr(executor, "step_through")


@dataclass(frozen=True)
class LayerReport:
    """Deviations of one case, in the order of the points of ``test``."""

    test: LayerTest
    deviations: list[float]

    @property
    def passes(self) -> bool:
        return all(found <= self.test.limit for found in self.deviations)

    @property
    def first(self) -> int:
        """Index of the first point at fault, -1: none. Rounding grows from layer to layer, a fault jumps."""
        beyond = [i for i, found in enumerate(self.deviations) if not found <= self.test.tolerance]
        jumps = (i for i in beyond if not self.deviations[i] <= _JUMP * max(self.deviations[:i], default=0.0))
        return next(jumps, beyond[0] if beyond else -1)

    def __str__(self) -> str:
        allowed = f"(allowed {self.test.tolerance:.1e})"
        if self.first >= 0:
            return f"{self.test.points[self.first]} is the first to deviate, by {self.deviations[self.first]:.1e} {allowed}"
        return f"the layers agree to {max(self.deviations, default=0.0):.1e} {allowed}"


def probe_layers(executor: SteppingExecutor, case: SelfTestCase, test: LayerTest, index: int) -> LayerReport:
    """Run the prompt of case ``index`` launch by launch and compare each value on the way."""
    found = [np.zeros(1 + PROJECTIONS) for _ in test.points]
    table = block_table(executor, len(case.tokens))
    for start, tokens, last in chunks(executor, case.tokens):
        describe(executor, tokens, start, table, sample=last)
        for i, value in enumerate(executor.step_through(test.points)):
            with np.errstate(all="ignore"):
                found[i] += sketch(value, start * test.points[i].width)
    with np.errstate(all="ignore"):
        deviations = [deviation(*pair) for pair in zip(found, test.sketches[index], strict=True)]
    return LayerReport(test, deviations)
