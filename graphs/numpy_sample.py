"""``sample`` in numpy: the reference that every device's sampler is compared with, on the arrays of the graph."""

from __future__ import annotations

import numpy as np

from ferrum.graphs.ir import Node
from ferrum.graphs.numpy_run import Array, Run
from ferrum.pack.sampling import sample_reference
from ferrum.pack.step import OUTPUTS, SAMPLING, Sampling


def sample(run: Run, node: Node) -> tuple[Array, ...]:
    logits, *given = run.all(node)
    step = Sampling()
    for array, values in zip(SAMPLING, given, strict=True):
        setattr(step, array.name, values)
    for array, value in zip(OUTPUTS, node.outputs, strict=True):
        setattr(step, array.name, np.zeros(run.shape(value.shape), array.dtype))
    sample_reference(logits.astype(np.float32), step)
    return tuple(getattr(step, array.name) for array in OUTPUTS)
