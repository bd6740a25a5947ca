"""Packs that ferrum made by itself from a model's name, remembered under ``FERRUM_HOME/packs``.

A pack's file name carries a key over everything that decides its bytes: the checkpoint's identity, the options and the
compiler's own sources. A changed compiler or a newer download therefore never meets a stale pack.
"""

from __future__ import annotations

import glob
import hashlib
import importlib.util
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ferrum import env
from ferrum.errors import FerrumError
from ferrum.hub import FileProgress, ModelName, parse_name, pull
from ferrum.version import __version__

StageProgress = Callable[[str, int, int], None]
FolderCheck = Callable[[Path], None]  # may refuse a checkpoint's folder by raising FerrumError
_COMPILER_FOLDERS = ("graphs", "codegen", "templates", "pack")
_COMPILER_SUFFIXES = (".py", ".j2", ".h", ".hpp")
_KEY_DIGITS = 12


@dataclass(frozen=True)
class PackRequest:
    """What may differ between two packs of one model. ``max_model_len`` 0 is the model's own length."""

    target: str = "cpu"
    quant: str = "keep"
    kv_dtype: str = ""
    max_model_len: int = 0
    activations: str = "auto"


def resolve_pack(
    text: str,
    request: PackRequest | None = None,
    on_file: FileProgress | None = None,
    on_stage: StageProgress | None = None,
    check: FolderCheck | None = None,
) -> Path:
    """The pack that a user's text means: itself, a remembered one, or one that is compiled now. ``check`` sees a model's folder
    before its weights are downloaded or compiled."""
    request = request or PackRequest()
    name = parse_name(text)
    if name.kind == "pack":
        assert name.path is not None
        return name.path
    source = local_source(name, on_file, check)
    target = exact_target(request.target)
    path = pack_path(name, source, replace(request, target=target))
    if path.is_file():
        return path
    return _compile(name, source, request, path, on_stage)


def local_source(
    name: ModelName, on_file: FileProgress | None = None, check: FolderCheck | None = None, pooling: str = ""
) -> Path:
    """The checkpoint's folder; a hub model is downloaded unless a complete copy is in the cache.

    A model that cannot be compiled, or that ``check`` refuses, is refused before its weights are downloaded. ``pooling``: as the
    compiler gets it.
    """
    from ferrum.compile_process import check_config

    def both(folder: Path) -> None:
        check_config(folder, pooling)
        if check is not None:
            check(folder)

    source = name.path if name.kind != "hub" else pull(name, on_file, offline_ok=True, check=both)
    assert source is not None
    if check is not None:
        check(source)
    return source


def check_tokenizer(folder: Path) -> None:
    """Raises FerrumError for a checkpoint's folder, or a file, whose pack would take and give token ids only."""
    if (folder / "tokenizer.json").is_file():
        return
    from ferrum.compile_process import check_config, has_tokenizer

    check_config(folder)  # of a folder that holds no model at all, that is to be said
    if has_tokenizer(folder):
        return
    step = "give a model that has one; LLM in Python takes token ids"
    raise FerrumError("no-tokenizer", "the model has no tokenizer.json, so it takes no text", str(folder), step)


def exact_target(text: str) -> str:
    """``cpu``, ``cuda`` and ``metal`` with what this machine is, since a home folder may be shared by several; other targets
    are exact already."""
    if text == "cpu":
        from ferrum.devices.host import machine_arch, machine_features

        return f"cpu {machine_arch()} {' '.join(sorted(machine_features()))}"
    if text in ("cuda", "metal"):
        from ferrum.devices.gpus import find_gpus

        return f"{text} {' '.join(gpu.arch for gpu in find_gpus(text)[:1])}"
    return text


def pack_path(name: ModelName, source: Path, request: PackRequest) -> Path:
    """Where the pack of this model, these options and this compiler is or will be."""
    identity = {
        "source": source_identity(name, source),
        "target": request.target,
        "quant": request.quant,
        "kv_dtype": request.kv_dtype,
        "activations": request.activations,
        "max_model_len": request.max_model_len,
        "compiler": compiler_digest(),
    }
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:_KEY_DIGITS]
    quant = "" if request.quant in ("keep", "none") else f".{request.quant}"
    return env.packs_dir() / f"{name.short}{quant}.{key}.fpk"


def source_identity(name: ModelName, source: Path) -> str:
    """The hub's commit, or for a folder or file its files' names, sizes and times (a large checkpoint is not read for this)."""
    if name.kind == "hub":
        return f"{name.repo}@{source.name}"
    files = sorted(source.iterdir()) if source.is_dir() else _shards(source)
    digest = hashlib.sha256(str(source.resolve()).encode())
    for file in files:
        if file.is_file():
            status = file.stat()
            digest.update(f"\0{file.name}\0{status.st_size}\0{status.st_mtime_ns}".encode())
    return digest.hexdigest()


def _shards(file: Path) -> list[Path]:
    """A file with those that hold the rest of its model: weights and configuration lie beside an .onnx or .pt2."""
    if file.suffix in (".onnx", ".pt2"):
        return sorted([*file.parent.iterdir(), *file.parent.parent.glob("*.json")])
    found = re.fullmatch(r"(.+)-\d{5}(-of-\d{5}\.gguf)", file.name)
    pattern = f"{glob.escape(found[1])}-?????{found[2]}" if found else glob.escape(file.name)
    return sorted(file.parent.glob(pattern))


def compiler_digest() -> str:
    """Digest of the compiler's version and sources, so that a changed template makes a new pack."""
    root = Path(__file__).parent
    digest = hashlib.sha256(__version__.encode())
    for folder in _COMPILER_FOLDERS:
        top = root / folder
        for file in sorted(p for p in top.glob("**/*") if p.suffix in _COMPILER_SUFFIXES):
            digest.update(f"\0{folder}/{file.relative_to(top).as_posix()}\0".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _compile(name: ModelName, source: Path, request: PackRequest, path: Path, on_stage: StageProgress | None) -> Path:
    from ferrum.compile_process import compile_apart

    if importlib.util.find_spec("torch") is None:
        raise compiler_missing("torch")
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {
        "model": str(source),
        "target": request.target,
        "quant": request.quant,
        "kv_dtype": request.kv_dtype,
        "activations": request.activations,
        "max_model_len": request.max_model_len,
        "output": str(path),
        "revision": source.name if name.kind == "hub" else "",
        "name": name.short,
    }
    return compile_apart(options, on_stage)


def compiler_missing(package: str) -> FerrumError:
    """The runtime is installed without the compiler's packages."""
    step = "pip install 'ferrum-infer[compile]', or give a .fpk that was compiled elsewhere"
    return FerrumError("compiler-missing", f"compiling needs the package {package}", "", step)


def require_compiler(error: ModuleNotFoundError) -> FerrumError:
    """An import of the compiler failed: a package is missing, or else it is a fault of our own and raised again."""
    package = (error.name or "").partition(".")[0]
    if package == "ferrum":
        raise error
    return compiler_missing(package)
