"""Packs of one random small model, made once per format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.codegen.folders import compile_folder, save
from tests.models.test_parity import BASE, ROPES, reference

VOCAB = 1000


@pytest.fixture(scope="session")
def random_pack(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``random_pack(quant)``: a Qwen3-like model of two layers with a vocabulary of 1000."""
    values = BASE | {"vocab_size": VOCAB, "hidden_size": 96, "intermediate_size": 160, "rope_parameters": dict(ROPES["default"])}
    folder = save(reference("qwen3", values), tmp_path_factory.mktemp("random"))
    made: dict[str, Path] = {}

    def pack(quant: str) -> Path:
        if quant not in made:
            made[quant] = compile_folder(folder, quant)
        return made[quant]

    return pack
