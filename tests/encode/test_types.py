"""Encoders of `transformers` beyond those with tests of their own; `make coverage COVERAGE=--encoders` tries every type."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.coverage.encoder_trial import tried
from tests.coverage.outcomes import RUNS


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["megatron-bert", "roformer"])
def test_attention_that_is_written_out(kind: str, tmp_path: Path) -> None:
    """In both directions, where the mask is added as zeros or not at all."""
    outcome = tried(kind, tmp_path)
    assert outcome.result == RUNS, outcome
