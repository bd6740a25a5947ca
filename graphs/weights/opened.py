"""A checkpoint by its path, whatever it is stored as."""

from __future__ import annotations

from pathlib import Path

import msgspec

from ferrum.graphs.weights.checkpoint import Checkpoint, open_folder
from ferrum.graphs.weights.gguf import is_gguf
from ferrum.graphs.weights.packed import unpacked
from ferrum.graphs.weights.saved import EXPORTED, saved_graph

CONFIG = "config.json"


def open_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in a folder, or of a GGUF, ONNX or .pt2 file.

    Raises FerrumError: checkpoint-missing (no weights, or a shard is not there), checkpoint-pickle (only pickled weights),
    checkpoint-corrupt (header or index), bad-path (a name that leads out of the folder), for a GGUF file also what its
    configuration and its tensors may be refused for.
    """
    from ferrum.graphs.gguf.checkpoint import open_gguf_checkpoint  # which need other modules of this package first
    from ferrum.graphs.onnx.checkpoint import open_onnx_checkpoint
    from ferrum.graphs.pt2.checkpoint import open_exported_checkpoint

    path = Path(path)
    if is_gguf(path):
        return open_gguf_checkpoint(path)
    file = saved_graph(path)
    if file is None:
        return _open_packed(path)
    return open_exported_checkpoint(file) if file.suffix == EXPORTED else open_onnx_checkpoint(file)


def _open_packed(folder: Path) -> Checkpoint:
    """A folder's tensors; of one without a configuration they are what they are."""
    checkpoint = open_folder(folder)
    try:
        config = msgspec.json.decode((folder / CONFIG).read_bytes()) if (folder / CONFIG).is_file() else {}
        return unpacked(checkpoint, config if isinstance(config, dict) else {})
    except msgspec.MsgspecError:  # told where configurations are read
        return checkpoint
    except BaseException:
        checkpoint.close()
        raise
