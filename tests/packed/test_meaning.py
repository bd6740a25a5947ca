"""What packed tensors mean, beside the methods' own package or their written formulas: bit for bit, any rows of them."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from ferrum.codegen.policy import TargetPolicy
from ferrum.codegen.target import parse_target
from ferrum.graphs.expressions.evaluate import ExprRows
from ferrum.graphs.weights import open_checkpoint
from tests.packed.folders import METHODS, folder_of


@pytest.mark.parametrize("method", METHODS)
def test_every_kind_means_what_its_method_says(method: str, tmp_path: Path) -> None:
    folder = folder_of(METHODS[method], tmp_path / "model")
    policies = {device: TargetPolicy(parse_target(name), "keep") for device, name in (("cpu", "cpu-avx2"), ("gpu", "cuda-sm89"))}
    with closing(open_checkpoint(folder.path)) as checkpoint:
        for name, made in folder.made.items():
            source, wanted = ExprRows(checkpoint.meanings[name], checkpoint), made.values.numpy()
            for rows in (slice(0, len(wanted)), slice(3, 17)):
                assert np.array_equal(np.asarray(source.values(rows)), wanted[rows]), name
            for device, policy in policies.items():
                fmt = policy.exact(source.blocked)
                assert (fmt.name if fmt else "") == getattr(made, device), (name, device)
