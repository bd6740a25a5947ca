"""A GGUF file as a checkpoint: its own tensors, and what the model's are of them."""

from __future__ import annotations

from pathlib import Path

from ferrum.graphs.gguf.config import config_of
from ferrum.graphs.gguf.names import is_aside, sources_of
from ferrum.graphs.weights.checkpoint import Checkpoint
from ferrum.graphs.weights.gguf import open_gguf


def open_gguf_checkpoint(path: Path) -> Checkpoint:
    """Raises FerrumError as ``open_gguf``, ``config_of`` and ``sources_of`` do."""
    model = open_gguf(path)
    try:
        where = {name: file for file in model.files for name in file.tensors}
        aside = frozenset(name for name in where if is_aside(name))
        return Checkpoint(path, model.files, where, sources_of(model, config_of(model)), aside)
    except BaseException:
        for file in model.files:
            file.close()
        raise
