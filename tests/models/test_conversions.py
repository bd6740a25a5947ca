"""Rules by which `transformers` makes parameters of a checkpoint's tensors mean the same as expressions."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from typing import Any

import numpy as np
import pytest
import torch
from transformers.core_model_loading import Chunk, Concatenate, Interleave, MergeModulelist, Transpose, WeightConverter

from ferrum.graphs.expressions.evaluate import Arrays, evaluate, whole
from ferrum.graphs.expressions.expression import Tensor
from ferrum.graphs.findings import UnsupportedOps
from ferrum.graphs.frontend.conversions import converted

SHAPE = (8, 6)


def rule(targets: list[str], *operations: Any, sources: tuple[str, ...] = ("w",)) -> Any:
    return WeightConverter(source_patterns=list(sources), target_patterns=targets, operations=list(operations))


@pytest.mark.parametrize(
    ("targets", "operations", "sources", "tensors"),
    [
        (["a", "b"], (Chunk(dim=0),), ("w",), 1),
        (["a", "b", "c"], (Chunk(dim=1),), ("w",), 1),
        (["a", "b"], (Interleave(dim=0), Chunk(dim=0)), ("w",), 1),
        (["a"], (Interleave(dim=1),), ("w",), 1),
        (["a"], (Transpose(dim0=0, dim1=1),), ("w",), 1),
        (["a"], (MergeModulelist(dim=0),), ("w",), 3),
        (["a"], (MergeModulelist(dim=0), Concatenate(dim=1)), ("w", "v"), 3),
    ],
)
def test_an_expression_is_what_the_rule_makes(
    targets: list[str], operations: tuple[Any, ...], sources: tuple[str, ...], tensors: int
) -> None:
    made = rule(targets, *operations, sources=sources)
    random = np.random.default_rng(1)
    arrays = {f"{s}{i}": random.standard_normal(SHAPE).astype(np.float32) for s in sources for i in range(tensors)}
    given: dict[str, Any] = {s: [torch.from_numpy(arrays[f"{s}{i}"]) for i in range(tensors)] for s in sources}
    for operation in operations:
        given = operation.convert(given, source_patterns=list(sources), target_patterns=targets, config=None)
    parts = {s: [Tensor(f"{s}{i}", SHAPE) for i in range(tensors)] for s in sources}
    for name, expr in zip(targets, converted(made, parts), strict=True):  # type: ignore[arg-type]
        wanted = given[name] if name in given else next(iter(given.values()))
        wanted = wanted[0] if isinstance(wanted, list) else wanted
        np.testing.assert_array_equal(evaluate(expr, Arrays(arrays), whole(expr.type.shape)), wanted.numpy())


@pytest.mark.parametrize("operation", [Chunk(dim=0, num_shards_attribute="n"), Interleave(dim=0, inverse=True)])
def test_other_forms_are_findings(operation: Any) -> None:
    with pytest.raises(UnsupportedOps, match="weights that are converted by"):
        converted(rule(["a"], operation), {"w": [Tensor("w", SHAPE)]})
