"""``ferrum doctor``: toolchains, devices, caches; what can be compiled and run here."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from ferrum import env
from ferrum.cli.machine import ROOF_UNITS, cores, known_roofs, memory_bytes
from ferrum.cli.output import print_json, print_table, size
from ferrum.devices.compilers import version_line
from ferrum.errors import FerrumError
from ferrum.version import __version__

GPU_DEVICES = ("cuda", "metal")
GPU_PACKAGES = {"cuda-bindings": "cuda", "pyobjc-framework-Metal": "metal"}
COMPILER_PACKAGES = ("torch", "safetensors", "ziglang")
RUNTIME_PACKAGES = ("numpy", "tokenizers", "jinja2", "msgspec", "sanic", "huggingface_hub", "rich", "cryptography")


@dataclass(frozen=True)
class Finding:
    """One line. ``state``: "ok", "missing" (something cannot be done), "note"."""

    what: str
    state: str
    detail: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    del parser  # no options of its own


def run(args: argparse.Namespace) -> int:
    found = [*machine(), *toolchains(), *packages(), *folders(), *measured()]
    found += verdict(found)
    if args.json:
        print_json([asdict(f) for f in found])
    else:
        print_table(("WHAT", "STATE", "DETAIL"), [(f.what, f.state, f.detail) for f in found])
    return 0


def machine() -> Iterator[Finding]:
    from ferrum.devices.topology import memory_nodes, spreads

    yield Finding("ferrum", "ok", f"{__version__}, Python {platform.python_version()}")
    total, available = memory_bytes()
    nodes = memory_nodes()
    spread = f", weights are spread over {len(nodes)} memory nodes" if spreads(nodes) else ""
    what = f"{platform.machine()}, {cores()} cores, {size(available)} of {size(total)} memory free"
    yield Finding("machine", "ok", what + spread)
    from ferrum.codegen.target import ANY_CPUS, parse_target

    try:
        target = parse_target("cpu")
        anywhere = ", ".join(each.name for each in ANY_CPUS if each.arch == target.arch)
        yield Finding("device cpu", "ok", f"{target.name}: {', '.join(target.requires) or 'baseline'}; others too: {anywhere}")
    except FerrumError as error:
        yield Finding("device cpu", "missing", str(error))
    from ferrum.devices.host import tiles_note

    if note := tiles_note():
        yield Finding("tiles", "note", note)
    for device in GPU_DEVICES:
        yield from gpus(device)


def gpus(device: str) -> Iterator[Finding]:
    """The machine's GPUs of one kind, or what is missing. None is no fault: packs for the CPU run without."""
    from ferrum.codegen.target import cuda_target
    from ferrum.devices.cuda_driver import Gpu
    from ferrum.devices.gpus import probe

    found = probe(device)
    if found.missing:
        yield Finding(f"device {device}", "note", found.missing)
        return
    for gpu in found.gpus:
        if isinstance(gpu, Gpu) and cuda_target(*gpu.capability) is None:
            yield Finding(f"device {device}", "note", f"{gpu.name}: {gpu.arch}, which no target is for: use a pack for cpu")
            continue
        yield Finding(f"device {device}", "ok", f"{gpu.name}: {gpu.arch}, {size(gpu.memory)}, {found.driver}")


def toolchains() -> Iterator[Finding]:
    for name in ("cc", "gcc", "clang"):
        if path := shutil.which(name):
            yield Finding(f"compiler {name}", "ok", f"{path}: {version_line(path) or 'does not answer'}")
            break
    else:
        yield Finding("compiler cc", "note", "none; zig is used in its place")
    zig = _package_version("ziglang")
    yield Finding(
        "compiler zig", "ok" if zig else "note", f"ziglang {zig}" if zig else "pip install ziglang: to compile for others"
    )
    qemu = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    yield Finding("qemu-aarch64", "ok" if qemu else "note", qemu or "none; arm64 packs are compiled but cannot be tried here")


def packages() -> Iterator[Finding]:
    for name in RUNTIME_PACKAGES:
        version = _package_version(name)
        yield Finding(f"package {name}", "ok" if version else "missing", version or "pip install ferrum-infer")
    for name in COMPILER_PACKAGES:
        version = _package_version(name)
        yield Finding(f"package {name}", "ok" if version else "note", version or "pip install 'ferrum-infer[compile]'")
    for name, extra in GPU_PACKAGES.items():
        version = _package_version(name)
        yield Finding(f"package {name}", "ok" if version else "note", version or f"pip install 'ferrum-infer[{extra}]'")


def folders() -> Iterator[Finding]:
    from huggingface_hub import constants

    for what, folder in (
        ("packs", env.packs_dir()),
        ("build cache", env.cache_dir()),
        ("hub cache", Path(constants.HF_HUB_CACHE)),
    ):
        existing = next(p for p in (folder, *folder.parents) if p.exists())
        free = shutil.disk_usage(existing).free
        yield Finding(what, "ok", f"{folder}: {size(folder_size(folder))}, {size(free)} free")


def measured() -> Iterator[Finding]:
    """What the last ferrum bench measured of this machine."""
    for key, value in known_roofs().items():
        yield Finding("roof", "ok", f"{value:.2f} {ROOF_UNITS[key]}")


def verdict(found: list[Finding]) -> list[Finding]:
    """Can this machine compile, can it run?"""
    bad = [f.what for f in found if f.state == "missing"]
    has = {f.what for f in found if f.state == "ok"}
    devices = [device for device in ("cpu", *GPU_DEVICES) if f"device {device}" in has]
    compiler = any(w.startswith("compiler ") for w in has)
    lacking = [p for p in COMPILER_PACKAGES[:2] if f"package {p}" not in has] + ([] if compiler else ["a C compiler"])
    return [
        Finding("can run packs", "missing" if bad else "ok", "lacks " + ", ".join(bad) if bad else ", ".join(devices)),
        Finding("can compile", "missing" if lacking else "ok", "lacks " + ", ".join(lacking) if lacking else "cpu"),
    ]


def folder_size(folder: Path) -> int:
    """Bytes of the regular files below; links are not followed, so a file in a cache counts once."""
    return sum(f.lstat().st_size for f in folder.rglob("*") if f.is_file() and not f.is_symlink())


def _package_version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""
