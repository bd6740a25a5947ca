"""Folders and packs of small models, made once per run."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ferrum.codegen.target import Target
from ferrum.codegen.toolchains.cxx import CToolchain
from ferrum.graphs.tiny.chat import MODEL_FOLDER
from tests.codegen.folders import kept_pack, save
from tests.models.test_parity import BASE, ROPES, reference
from tests.once import once

VOCAB = 1000
RandomPack = Callable[..., Path]


def model_folder(run_folder: Path, family: str, values: dict[str, Any]) -> Path:
    """``reference(family, values)`` in a folder that all tests of a run share. It is only read."""
    key = hashlib.sha256(json.dumps([family, values], sort_keys=True).encode()).hexdigest()[:12]
    return once(run_folder / "models" / f"{family}-{key}", lambda part: save(reference(family, values), part))


@pytest.fixture(scope="session")
def qwen3_folder(run_folder: Path) -> Path:
    """A Qwen3 of two layers with random weights, as `transformers` saves it. It is only read."""
    values = BASE | {"rope_parameters": dict(ROPES["default"])}
    return model_folder(run_folder, "qwen3", values)


@pytest.fixture(scope="session")
def tiny_folder(run_folder: Path) -> Path:
    """A copy of the built-in model, beside which its traced graph is kept. It is only read."""
    return once(run_folder / "models" / "tiny", lambda part: shutil.copytree(MODEL_FOLDER, part))


@pytest.fixture(scope="session")
def random_pack(run_folder: Path) -> RandomPack:
    """``random_pack(quant, target, prove=..)``: a Qwen3-like model of two layers with a vocabulary of 1000."""
    values = BASE | {"vocab_size": VOCAB, "hidden_size": 96, "intermediate_size": 160, "rope_parameters": dict(ROPES["default"])}
    folder = model_folder(run_folder, "qwen3", values)
    return lambda quant, target="cpu", prove=False: kept_pack(folder, quant, target, prove=prove)


@pytest.fixture
def digests_for_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where packs are compared and not run, what decides the machine code stands for it."""

    def digest(compiler: CToolchain, source: str, target: Target, keep: Path | None = None) -> bytes:
        return hashlib.sha256("\0".join([*compiler.command, *compiler.flags(target), source]).encode()).digest()

    monkeypatch.setattr(CToolchain, "compile", digest)
