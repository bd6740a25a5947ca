"""From a model's name to a folder on this machine: aliases, local folders, downloads from the Hugging Face hub.

Downloads go into the Hugging Face cache (``HF_HOME``, ``HF_ENDPOINT`` and ``HF_TOKEN`` are honoured) in its own layout,
so other programs share the files. A file gets its final name only after its hash was compared with the hub's.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlparse

from ferrum.errors import FerrumError
from ferrum.families import ALIASES

BUILT_IN = "tiny"

_REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_GGUF_FORM = re.compile(r"-(q\d[a-z0-9_]*|iq\d[a-z0-9_]*|bf16|f16)$")
_SHARD_NUMBER = re.compile(r"-\d{5}-of-\d{5}$")
_GRAPH_SUFFIXES = (".onnx", ".pt2")  # a model whole, with what it computes
_FILE_SUFFIXES = (".fpk", ".gguf", *_GRAPH_SUFFIXES)
_SMALL_SUFFIXES = (".json", ".jinja", ".model", ".txt")
_IN_FOLDERS = re.compile(r"additional_chat_templates/[A-Za-z0-9_][A-Za-z0-9._-]*\.jinja|[0-9]+_Pooling/config\.json")
_SKIPPED = ("consolidated", "original")
_UNSAFE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

_ATTEMPTS = 5
_TIMEOUT_SECONDS = 20.0

# (file name, bytes done, bytes in all)
FileProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ModelName:
    """What the user's text means. ``kind``: "pack", "folder", "file" have ``path``; "hub" ``repo`` and ``revision``."""

    text: str
    kind: str
    path: Path | None = None
    repo: str = ""
    revision: str = "main"

    @property
    def short(self) -> str:
        """A file-name-safe name without folders, such as ``qwen3-0.6b``."""
        if self.kind == "hub":
            lower = self.text.lower()
            base = lower.replace(":", "-") if lower in ALIASES else self.repo.rsplit("/", 1)[-1]
        elif self.text.lower() == BUILT_IN:
            base = BUILT_IN
        else:
            assert self.path is not None
            base = self.path.resolve().name if self.kind == "folder" else _SHARD_NUMBER.sub("", self.path.stem)
        return re.sub(r"[^A-Za-z0-9._-]+", "-", base).strip("-.").lower() or "model"


def parse_name(text: str) -> ModelName:
    """Tell a pack, a folder, an alias and a hub name apart. Raises FerrumError(model-unknown) with close aliases."""
    if not text.strip():
        raise _unknown("(empty)")
    path = Path(os.path.expanduser(text))  # unlike Path.expanduser, it leaves the ~ of an unknown user alone
    lower = text.lower()
    if lower == BUILT_IN and not path.exists():
        return ModelName(text, "folder", built_in_folder())
    if path.suffix in _FILE_SUFFIXES or path.is_file():
        return _file_name(text, path)
    if path.is_dir() and lower not in ALIASES:
        return ModelName(text, "folder", path)
    if lower in ALIASES:
        return ModelName(text, "hub", repo=ALIASES[lower])
    if lower == BUILT_IN:
        return ModelName(text, "folder", built_in_folder())
    if (form := _GGUF_FORM.search(lower)) and lower[: form.start()] in ALIASES:
        step = f"give the path of a .gguf file, or use {lower[: form.start()]} with --quant"
        raise FerrumError("format-unsupported", "GGUF files are not downloaded by a short name", text, step)
    repo, at, revision = text.partition("@")
    if at and not revision:
        raise FerrumError("model-unknown", "there is no revision behind the @", text, f"give one, or {repo} alone")
    if _REPO.fullmatch(repo) and ".." not in repo and _REVISION.fullmatch(revision or "main") and ".." not in revision:
        return ModelName(text, "hub", repo=repo, revision=revision or "main")
    raise _unknown(text)


def _file_name(text: str, path: Path) -> ModelName:
    if path.suffix == ".fpk":
        if not path.is_file():
            raise FerrumError("pack-missing", "there is no such pack", text, "check the path, or make it with ferrum compile")
        return ModelName(text, "pack", path)
    if path.suffix in _UNSAFE_SUFFIXES:
        raise FerrumError("unsafe-format", "pickle files can run code and are not read", text, "convert it to safetensors")
    if path.suffix == ".safetensors":
        step = "give the folder that it is in, which has config.json too"
        raise FerrumError("format-unsupported", "a file of weights alone is not a model", text, step)
    if path.suffix not in (".gguf", *_GRAPH_SUFFIXES):
        step = "give a .fpk, .gguf, .onnx or .pt2, or a folder with config.json and weights"
        raise FerrumError("format-unsupported", "files of this kind are not models that can be read", text, step)
    if not path.is_file():
        raise FerrumError("model-not-found", "there is no such file", text, "check the path")
    return ModelName(text, "file", path)


def _unknown(text: str) -> FerrumError:
    import difflib

    close = difflib.get_close_matches(text.lower(), [BUILT_IN, *ALIASES], n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    return FerrumError("model-unknown", "no such model", text, f"{hint}give an alias, org/name, a folder or a .fpk")


def built_in_folder() -> Path:
    """The folder of the built-in model's checkpoint."""
    return Path(__file__).parent / "graphs" / "tiny" / "model"


# ---- the cache


def cached_snapshot(name: ModelName) -> Path | None:
    """The complete snapshot of a hub model in the cache, without asking the network; None when there is none."""
    assert name.kind == "hub"
    storage = storage_folder(name.repo)
    commit = name.revision
    ref = storage / "refs" / name.revision
    if ref.is_file():
        commit = ref.read_text(encoding="ascii", errors="replace").strip()
    folder = storage / "snapshots" / commit
    return folder if _HASH.fullmatch(commit) and missing_files(folder) == [] else None


def storage_folder(repo: str) -> Path:
    """``models--org--name`` inside the hub cache."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / ("models--" + repo.replace("/", "--"))


def missing_files(folder: Path) -> list[str]:
    """Names of the files without which a checkpoint folder cannot be compiled; empty when it is complete."""
    missing = [] if (folder / "config.json").is_file() else ["config.json"]
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return missing + [shard for shard in _shards(index) if not (folder / shard).is_file()]
    if not any(folder.glob("*.safetensors")):
        missing.append("model.safetensors")
    return missing


def _shards(index: Path) -> list[str]:
    """The file names in a safetensors index, checked to be plain names."""
    try:
        table = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted({str(v) for v in table.values()})
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise FerrumError("index-bad", "the index is not readable", index.name, "pull the model again") from error
    for shard in shards:
        if not _FILE.fullmatch(shard) or not shard.endswith(".safetensors"):
            raise FerrumError("index-bad", f"the index names {shard}", index.name, "only plain .safetensors names are read")
    return shards


# ---- pulling


def pull(
    name: ModelName,
    progress: FileProgress | None = None,
    offline_ok: bool = False,
    check: Callable[[Path], object] | None = None,
) -> Path:
    """Download what is missing of a hub model and return its snapshot folder.

    Interrupted downloads are continued. With ``offline_ok`` a complete snapshot in the cache is returned without asking
    the hub. ``check`` gets the folder when all but the weights is there, and may refuse it by raising. Raises
    FerrumError: model-unknown, revision-unknown, gated, file-missing, hash-mismatch, unsafe-format, disk-full,
    hub-unreachable.
    """
    if offline_ok and (found := cached_snapshot(name)) is not None:
        return found
    report = progress or (lambda file, done, total: None)
    with _hub_errors(name):
        return _pull(name, report, check)


def _pull(name: ModelName, report: FileProgress, check: Callable[[Path], object] | None) -> Path:
    from huggingface_hub import HfApi

    info = HfApi().model_info(name.repo, revision=name.revision, files_metadata=True)
    commit = str(info.sha or "")
    if not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise FerrumError("hub-answer", "the hub named no commit", name.text, "check HF_ENDPOINT")
    sizes = {s.rfilename: int(s.size or 0) for s in info.siblings or []}
    small, weights = choose_files(name, list(sizes))
    _check_room(name, sum(sizes[f] for f in small + weights))
    snapshot = storage_folder(name.repo) / "snapshots" / commit
    for file in small:
        _download(name, commit, file, report)
    if check is not None:
        check(snapshot)
    index = snapshot / "model.safetensors.index.json"
    if index.is_file():
        weights = _shards(index)
        if gone := [shard for shard in weights if shard not in sizes]:
            raise FerrumError("file-missing", f"the repository has no {', '.join(gone)}", name.text, "the upload is not complete")
    for file in weights:
        _download(name, commit, file, report)
    _write_ref(name, commit)
    return snapshot


def choose_files(name: ModelName, files: list[str]) -> tuple[list[str], list[str]]:
    """(configuration and tokenizer files, weights) among a repository's files: top-level ones, named chat templates and what says
    how a model's rows are pooled, only in safe formats."""
    plain = [f for f in files if _FILE.fullmatch(f)]
    small = [f for f in plain if f.endswith(_SMALL_SUFFIXES)] + [f for f in files if _IN_FOLDERS.fullmatch(f)]
    weights = [f for f in plain if f.endswith(".safetensors") and not f.startswith(_SKIPPED)]
    if "model.safetensors" in weights and "model.safetensors.index.json" not in small:
        weights = ["model.safetensors"]
    if not weights and any(f.endswith(".gguf") for f in plain):
        step = "download one file and give its path, or choose a repository with safetensors"
        raise FerrumError("format-unsupported", "the repository has GGUF files only", name.text, step)
    if "config.json" not in small:
        raise FerrumError(
            "file-missing", "the repository has no config.json", name.text, "choose a repository of a language model"
        )
    if not weights:
        if any(f.endswith(_UNSAFE_SUFFIXES) for f in plain):
            what, step = "only pickle files (.bin, .pt) are there, which can run code", "choose a repository with safetensors"
            raise FerrumError("unsafe-format", what, name.text, step)
        raise FerrumError("file-missing", "the repository has no safetensors", name.text, "choose another repository")
    return sorted(small), sorted(weights)


def _check_room(name: ModelName, needed: int) -> None:
    import shutil

    folder = storage_folder(name.repo)
    have = sum(f.stat().st_size for f in folder.glob("blobs/*")) if folder.is_dir() else 0
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if needed - have > free:
        what = f"{needed - have >> 20} MiB are needed and {free >> 20} MiB are free"
        raise FerrumError("disk-full", what, str(existing), "free some space or set HF_HOME to another disk")


def _download(name: ModelName, commit: str, file: str, report: FileProgress) -> None:
    """One file into the cache: continue what is there, compare the hash, then give it its final name."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    if (storage_folder(name.repo) / "snapshots" / commit / file).is_file():
        return
    url = hf_hub_url(name.repo, file, revision=commit)
    meta = get_hf_file_metadata(url)
    etag = meta.etag or ""
    if not _HASH.fullmatch(etag):
        raise FerrumError("hub-answer", "the hub gave no hash", f"{name.repo} {file}", "check HF_ENDPOINT")
    blob = storage_folder(name.repo) / "blobs" / etag
    if not blob.is_file():
        headers = build_hf_headers()
        if urlparse(meta.location).netloc != urlparse(url).netloc:
            headers.pop("authorization", None)  # the token is for the hub, not for the store it points at
        blob.parent.mkdir(parents=True, exist_ok=True)
        part = blob.with_name(etag + ".incomplete")
        _fetch(part, meta.location, headers, meta.size, lambda done, total: report(file, done, total))
        if file_hash(part, len(etag)) != etag:
            part.unlink()
            raise FerrumError("hash-mismatch", "the bytes differ from the hub's hash", f"{name.repo} {file}", "pull again")
        part.replace(blob)
    # The blob is there, so this only links it into the snapshot in the cache's own way.
    hf_hub_download(name.repo, file, revision=commit)


def _fetch(part: Path, url: str, headers: dict[str, str], size: int | None, report: Callable[[int, int], None]) -> None:
    """Append what is missing to ``part``, over several connections if need be; the bytes of a cut download are kept."""
    import fcntl
    import os

    import httpx2

    with part.open("ab") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise FerrumError("pull-busy", "another download of this file is running", part.name, "wait for it") from error
        failures = 0
        while True:
            before = stream.seek(0, os.SEEK_END)
            if size is not None and before > size:
                before = stream.truncate(0)
            try:
                if size is None or before < size:
                    _append(stream, before, url, headers, size, report)
                break
            except httpx2.TransportError:
                # A connection that brought something does not count as a failure: slow links are cut again and again.
                failures = 1 if stream.tell() > before else failures + 1
                if failures >= _ATTEMPTS:
                    raise
                time.sleep(failures)
        stream.flush()
        os.fsync(stream.fileno())


def _append(
    stream: BinaryIO, have: int, url: str, headers: dict[str, str], size: int | None, report: Callable[[int, int], None]
) -> None:
    """One connection: the bytes from ``have`` on, flushed as they arrive so that a killed process leaves them."""
    from huggingface_hub import get_session
    from huggingface_hub.utils import hf_raise_for_status

    asked = {**headers, "accept-encoding": "identity", **({"range": f"bytes={have}-"} if have else {})}
    with get_session().stream("GET", url, headers=asked, timeout=_TIMEOUT_SECONDS, follow_redirects=True) as response:
        hf_raise_for_status(response)
        if have and response.status_code != 206:
            stream.truncate(0)
            have = 0
        total = size or have + int(response.headers.get("content-length") or 0)
        for chunk in response.iter_bytes():
            stream.write(chunk)
            stream.flush()
            have += len(chunk)
            report(have, max(total, have))


def file_hash(path: Path, digits: int) -> str:
    """The hub's etag of a file: SHA-256 (64 digits) or git's blob SHA-1 (40 digits)."""
    digest = hashlib.sha256() if digits == 64 else hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _write_ref(name: ModelName, commit: str) -> None:
    """Remember that a branch or tag was complete at this commit, as the cache's layout does."""
    if name.revision == commit:
        return
    ref = storage_folder(name.repo) / "refs" / name.revision
    ref.parent.mkdir(parents=True, exist_ok=True)
    temporary = ref.with_name(ref.name + ".incomplete")
    temporary.write_text(commit, encoding="ascii")
    temporary.replace(ref)


@contextmanager
def _hub_errors(name: ModelName) -> Iterator[None]:
    """The hub's exceptions as errors that say what to do; fixed texts, no addresses."""
    import httpx2
    from huggingface_hub import errors

    where = name.text
    try:
        yield
    except errors.GatedRepoError as error:
        step = "accept its licence on the hub, then set HF_TOKEN"
        raise FerrumError("gated", "access to this repository must be granted", where, step) from error
    except errors.RevisionNotFoundError as error:
        raise FerrumError("revision-unknown", f"no revision {name.revision}", where, "check the branch, tag or commit") from error
    except errors.RepositoryNotFoundError as error:
        step = "check the name; a private repository needs HF_TOKEN"
        raise FerrumError("model-unknown", "the hub has no such model", where, step) from error
    except errors.EntryNotFoundError as error:
        raise FerrumError("file-missing", "the hub lists a file that it does not have", where, "pull again later") from error
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", 0)
        if status in (401, 403):
            raise FerrumError("gated", f"the hub refused access ({status})", where, "check HF_TOKEN") from error
        raise FerrumError("hub-unreachable", f"the hub answered {status}", where, "pull again later") from error
    except errors.OfflineModeIsEnabled as error:
        raise FerrumError("hub-unreachable", "offline mode is on", where, "unset HF_HUB_OFFLINE or use a local folder") from error
    except (httpx2.HTTPError, ConnectionError, TimeoutError) as error:
        step = "check the network and pull again; what was downloaded is kept"
        raise FerrumError("hub-unreachable", "the connection to the hub failed", where, step) from error
