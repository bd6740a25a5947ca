"""``ferrum list``: models in the Hugging Face cache and packs that ferrum made."""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from ferrum import env
from ferrum.cli.machine import taken_variant
from ferrum.cli.output import print_json, print_table, size
from ferrum.cli.quality import short_quality
from ferrum.cli.stop import running
from ferrum.errors import FerrumError


@dataclass(frozen=True)
class Entry:
    """One line. ``kind`` is "model" or "pack"; ``bytes`` counts each stored file once; ``quality`` is of packs, with ``-v``."""

    name: str
    kind: str
    bytes: int
    status: str
    modified: str
    path: str
    quality: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", nargs="*", metavar="FOLDER", help="more folders to look for packs in (default: this one)")
    parser.add_argument("--running", action="store_true", help="show the servers that run instead")


def run(args: argparse.Namespace) -> int:
    if args.running:
        return _show_running(bool(args.json))
    for folder in args.folder:
        if not Path(folder).is_dir():
            raise FerrumError("file-missing", "there is no such folder", folder, "check the name")
    folders = [env.packs_dir(), *map(Path, args.folder or ["."])]
    entries = [*hub_models(), *(entry for folder in dict.fromkeys(folders) for entry in packs(folder))]
    if args.verbose:
        entries = [replace(e, quality=short_quality(Path(e.path))) if e.kind == "pack" else e for e in entries]
    if args.json:
        print_json([asdict(e) for e in entries])
    elif entries:
        columns = 5 if args.verbose else 4
        rows = [(e.name, size(e.bytes), e.status, e.modified, e.quality or "-")[:columns] for e in entries]
        print_table(("NAME", "SIZE", "STATUS", "MODIFIED", "QUALITY")[:columns], rows)
    else:
        print("nothing here yet · ferrum pull MODEL or ferrum compile MODEL")
    return 0


def _show_running(as_json: bool) -> int:
    servers = running()
    if as_json:
        print_json([asdict(s) for s in servers])
    elif servers:
        print_table(("ADDRESS", "PID"), [(s.socket or f"{s.host}:{s.port}", str(s.pid)) for s in servers])
    else:
        print("no server is running")
    return 0


def hub_models() -> list[Entry]:
    """Repositories in the hub cache that hold safetensors or are on their way."""
    from huggingface_hub import constants

    entries = []
    for storage in sorted(Path(constants.HF_HUB_CACHE).glob("models--*--*")):
        blobs = [f for f in storage.glob("blobs/*") if f.is_file()]
        if not blobs:
            continue
        name = storage.name.removeprefix("models--").replace("--", "/")
        newest = max(f.stat().st_mtime for f in blobs)
        total = sum(f.stat().st_size for f in blobs)
        entries.append(Entry(name, "model", total, model_status(storage), _when(newest), str(storage)))
    return entries


def model_status(storage: Path) -> str:
    """Is it "ready": when the newest complete pull has all files that its index names."""
    from ferrum.hub import missing_files

    for ref in storage.glob("refs/**/*"):
        if ref.is_file() and ref.suffix != ".incomplete":
            folder = storage / "snapshots" / ref.read_text(encoding="ascii", errors="replace").strip()
            try:
                if folder.is_dir() and not missing_files(folder):
                    return "ready"
            except FerrumError:
                continue
    complete = any(folder.is_dir() and not missing_files(folder) for folder in storage.glob("snapshots/*"))
    return "ready" if complete else "incomplete"


def packs(folder: Path) -> list[Entry]:
    """The packs in a folder; one whose manifest cannot be read is incomplete."""
    entries = []
    for path in sorted(p for p in folder.glob("*.fpk") if p.is_file()):
        status = path.stat()
        entries.append(Entry(path.name, "pack", status.st_size, pack_status(path), _when(status.st_mtime), str(path)))
    return entries


def pack_status(path: Path) -> str:
    from ferrum.pack.reader import read_manifest

    try:
        manifest = read_manifest(path)
    except (FerrumError, OSError):
        return "incomplete"
    return f"ready, takes {taken_variant(manifest) or 'no variant'} here" if len(manifest.code) > 1 else "ready"


def _when(timestamp: float) -> str:
    return datetime.fromtimestamp(timestamp, UTC).astimezone().strftime("%Y-%m-%d %H:%M")
