"""A checkpoint by its path, whatever it is stored as."""

from __future__ import annotations

from pathlib import Path

from ferrum.graphs.weights.checkpoint import Checkpoint, open_folder
from ferrum.graphs.weights.gguf import is_gguf


def open_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in a folder, or of a GGUF file.

    Raises FerrumError: checkpoint-missing (no weights, or a shard is not there), checkpoint-pickle (only pickled weights),
    checkpoint-corrupt (header or index), bad-path (a name that leads out of the folder), for a GGUF file also what its
    configuration and its tensors may be refused for.
    """
    from ferrum.graphs.gguf.checkpoint import open_gguf_checkpoint  # which needs other modules of this package first

    path = Path(path)
    return open_gguf_checkpoint(path) if is_gguf(path) else open_folder(path)
