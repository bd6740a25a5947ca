"""Files that hold a model whole, its computation too: ONNX, and what ``torch.export.save`` writes."""

from __future__ import annotations

from pathlib import Path

from ferrum.errors import FerrumError

ONNX, EXPORTED = ".onnx", ".pt2"
SUFFIXES = (ONNX, EXPORTED)
_INNER = "onnx"  # where repositories keep ONNX files beside a model's other forms


def saved_graph(path: Path) -> Path | None:
    """``path`` if it is such a file; the one that a folder without safetensors holds. None: there is none.

    Raises FerrumError (checkpoint-missing) for several of which none is called model.
    """
    if path.suffix in SUFFIXES and not path.is_dir():
        return path
    if not path.is_dir() or any(path.glob("*.safetensors*")):
        return None
    found = [file for folder in (path, path / _INNER) for file in sorted(folder.glob("*.*")) if file.suffix in SUFFIXES]
    called = [file for file in found if file.stem == "model"]
    if len(found) > 1 and len(called) != 1:
        what = f"{len(found)} models are in it: {', '.join(file.name for file in found[:4])}"
        raise FerrumError("checkpoint-missing", what, str(path), "name one of the files")
    return called[0] if len(found) > 1 else found[0] if found else None


def folder_of(file: Path) -> Path:
    """Where the configuration and the tokenizer of a model in a file lie."""
    outer = file.parent.parent
    return outer if file.parent.name == _INNER and not (file.parent / "config.json").exists() else file.parent
