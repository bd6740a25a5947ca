"""An ONNX file as a checkpoint: its tensors by name, mapped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from ferrum.graphs.onnx.file import OnnxFile
from ferrum.graphs.weights.checkpoint import Checkpoint, MappedFile

BLOCKS = "MatMulNBits"
_PACKED = (1, 3)  # its codes and zero points
_WORD = 4


def open_onnx_checkpoint(path: Path) -> Checkpoint:
    """Codes of few bits, which a file keeps as bytes, are listed as rows of the 32-bit words that they are elsewhere, too.

    Raises FerrumError as ``OnnxFile`` does.
    """
    model = OnnxFile(path)
    for node in model.nodes:
        if node.op != BLOCKS:
            continue
        for name in (node.inputs[at] for at in _PACKED if at < len(node.inputs)):
            _as_words(model, name, node.attributes.get("N"))
    where: dict[str, MappedFile] = {name: file for file in model.files for name in file.tensors}
    return Checkpoint(path, model.files, where)


def _as_words(model: OnnxFile, name: str, rows: object) -> None:
    file = next((file for file in model.files if name in file.tensors), None)
    if file is None or not isinstance(rows, int) or rows < 1:
        return
    info = file.tensors[name]
    if info.dtype == "u8" and info.nbytes % (_WORD * rows) == 0:
        shape = (rows, info.nbytes // (_WORD * rows))
        file.tensors[name] = replace(info, dtype="i32", storage=np.int32, shape=shape)
