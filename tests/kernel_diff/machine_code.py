"""Machine code of chosen functions of a rendered source, one digest each, without names, addresses and order.

CPUs: the assembly of the C compiler that a pack would be built with. CUDA: the cubin's listing. Metal, for which there is no
compiler here: the assembly of the source as the emulator compiles it, which tells meaning as well, if not registers.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from ferrum.codegen.static import find_tool
from ferrum.codegen.target import GpuTarget, Target, parse_target
from ferrum.codegen.toolchains.cxx import find_compiler
from ferrum.codegen.toolchains.gpu import find_gpu_toolchain
from ferrum.devices.emulate import metal
from ferrum.devices.emulate.compiler import find_cxx
from ferrum.errors import FerrumError
from tests.kernel_diff.c_source import parse_c
from tests.kernel_diff.text import Piece, Unit

REST = "step"  # all of a CPU's source that no kernel uses: what the library exports
_SYMBOL = re.compile(r"[$.\w@]+|\S")
_LABEL = re.compile(r"^([$.\w]+):", re.M)
_SECTION = re.compile(r"^\t\.section\t(\S+?),[^\n]*\n", re.M)
# What says nothing about the code: positions, frames, where objects lie, whom they are known to.
_NOISE = re.compile(
    r"^\s*(?:\.(?:cfi_\w+|file|loc|ident|size|type|section|text|data|bss|globl|local|hidden|weak|addrsig\w*|cfi)\b|[#;]|//).*$"
)


def code_digests(source: str, target_name: str, symbols: list[str], cache_folder: Path) -> dict[str, str]:
    """The digest of each of ``symbols`` (``REST`` included); what was compiled before is read from ``cache_folder``.

    Raises FerrumError where there is no compiler or the source does not compile.
    """
    target = parse_target(target_name)
    if REST not in symbols:
        source = parse_c(source).part(symbols)
    key = hashlib.sha256("\0".join((source, target_name, _version(target), _tool(), *symbols)).encode()).hexdigest()
    path = cache_folder / f"{key[:32]}.json"
    if path.is_file():
        return {str(k): str(v) for k, v in json.loads(path.read_text(encoding="utf-8")).items()}
    if isinstance(target, Target):
        found = _cpu(source, target, symbols)
    elif target.device == "cuda":
        found = _cuda(source, target, symbols)
    else:
        found = _metal(source, symbols)
    cache_folder.mkdir(parents=True, exist_ok=True)
    made = path.with_suffix(f".{os.getpid()}.tmp")
    made.write_text(json.dumps(found), encoding="utf-8")
    made.replace(path)
    return found


@cache
def _tool() -> str:
    """This folder's own text: a change in it makes what was cached stale."""
    return "".join(path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.glob("*.py")))


def _version(target: Target | GpuTarget) -> str:
    if isinstance(target, Target):
        return find_compiler(target.arch, target.amx).version
    return find_gpu_toolchain(target).version if target.device == "cuda" else find_cxx(True).version


def _cpu(source: str, target: Target, symbols: list[str]) -> dict[str, str]:
    compiler = find_compiler(target.arch, target.amx)
    kernels = [s for s in symbols if s != REST]
    # kernels of a part are called by nobody
    source += f"void *const kernel_diff_roots[] = {{{', '.join(f'(void *){s}' for s in kernels)}}};\n" if kernels else ""
    flags = [flag for flag in compiler.flags(target) if flag not in ("-shared", "-Wall")]
    unit, text = _assembly([*compiler.command, *flags, "-w"], "step.c", source)
    found = {symbol: _digest(unit, [symbol]) for symbol in kernels}
    if REST in symbols:
        exported = re.findall(r"^\s*\.globl\s+(\S+)", text, re.M)
        found[REST] = _digest(unit, [name for name in exported if name != "kernel_diff_roots"], frozenset(kernels))
    return found


def _digest(unit: Unit, roots: list[str], stop: frozenset[str] = frozenset()) -> str:
    """A function that is not there must not look like another that is not there."""
    if not roots or any(root not in unit.by_name for root in roots):
        raise FerrumError("toolchain-failed", f"{', '.join(roots) or 'a kernel'} is not in the code", "kernel-diff", "")
    return unit.closure(roots, stop).digest


def _metal(source: str, symbols: list[str]) -> dict[str, str]:
    compiler = find_cxx(True)
    flags = [flag for flag in compiler.flags() if flag != "-shared"]
    with tempfile.TemporaryDirectory(prefix="kernel-diff-") as folder:
        for name in metal.HEADERS:
            (Path(folder) / name).touch()
        unit, _ = _assembly([*compiler.command, *flags, f"-I{folder}"], "step.cpp", metal.translate(source))
    # clang writes a kernel into the function that enters it
    entered = {s: [n for n in unit.by_name if re.search(rf"emu_enter_{s}(?![a-z0-9_])", n)] for s in symbols}
    return {symbol: _digest(unit, names) for symbol, names in entered.items()}


def _assembly(command: list[str], name: str, source: str) -> tuple[Unit, str]:
    with tempfile.TemporaryDirectory(prefix="kernel-diff-") as folder:
        (Path(folder) / name).write_text(source, encoding="utf-8")
        command = [*command, "-S", "-fno-asynchronous-unwind-tables", name, "-o", "step.s"]
        env = {**os.environ, "LC_ALL": "C", "ZIG_LOCAL_CACHE_DIR": str(Path(folder) / "zig-cache")}
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=env, check=False)
        if result.returncode:
            lines = [line for line in result.stderr.splitlines() if "error" in line] or ["no output"]
            raise FerrumError("toolchain-failed", lines[0], name, "compile the pack to see it whole")
        text = (Path(folder) / "step.s").read_text(encoding="utf-8")
    return Unit(_asm_pieces(text), lambda source, number: ""), text


def _asm_pieces(text: str) -> Iterator[Piece]:
    """Functions whole, with the labels inside them; every other label (constants, tables) with the data behind it."""
    functions = set(re.findall(r"\.type\s+([$.\w]+),\s*[@%]function", text))
    comment = re.compile(r"\s//.*" if "%function" in text else r"\s#.*")
    held: list[str] = []
    inside = ""
    for line in text.splitlines():
        label = _LABEL.match(line)
        if label and not inside:
            yield from _asm_piece(held)
            held = []
            inside = label[1] if label[1] in functions else ""
        elif not inside and re.match(r"\s*\.(?:section|text|data|bss)\b", line):
            yield from _asm_piece(held)
            held = []
        held.append(line if ".asci" in line or ".string" in line else comment.sub("", line))
        if inside and re.match(rf"\s*\.size\s+{re.escape(inside)},", line):
            yield from _asm_piece(held)
            held, inside = [], ""
    yield from _asm_piece(held)


def _asm_piece(lines: list[str]) -> Iterator[Piece]:
    names = {match[1] for line in lines if (match := _LABEL.match(line))}
    if not names:
        return
    kept = [line for line in lines if not _NOISE.match(line)]
    # "$" and "@" are parts of names of CUDA's and of none here
    tokens = [t for line in kept for t in re.findall(r"[.\w]+|\S", line)]
    yield Piece(tuple(tokens), frozenset(names), "")


def _cuda(source: str, target: GpuTarget, symbols: list[str]) -> dict[str, str]:
    tool = find_tool("nvdisasm")
    if not tool:
        raise FerrumError("no-compiler", "nvdisasm is not installed", "PATH", "pip install nvidia-cuda-nvdisasm")
    with tempfile.TemporaryDirectory(prefix="kernel-diff-") as folder:
        path = Path(folder) / "step.cubin"
        path.write_bytes(find_gpu_toolchain(target).compile(source, target, Path(folder)))
        text = subprocess.run([tool, str(path)], capture_output=True, text=True, check=True).stdout
    unit = Unit(_sass_pieces(text, symbols), lambda source, number: "")
    return {symbol: _digest(unit, [f".text.{symbol}"]) for symbol in symbols}


def _sass_pieces(text: str, symbols: list[str]) -> Iterator[Piece]:
    """A kernel's section, its outlined functions, what it has of shared memory and parameters, and constants of all."""
    parts = _SECTION.split(text)[1:]
    for name, body in zip(parts[0::2], parts[1::2], strict=True):
        body = re.sub(r"/\*[0-9a-fx]+\*/|//[^\n]*", "", body)
        if name.startswith(".text."):
            yield from _sass_functions(name, body)
        elif (owner := next((s for s in symbols if name in (f".nv.shared.{s}", f".nv.constant0.{s}")), "")):
            yield Piece(tuple(_words(body)), frozenset({f".text.{owner}", name}), "")
        elif re.match(r"\.nv\.(?:constant[1-9]|global)", name):
            yield Piece(tuple(_words(body)), frozenset({name}), "")


def _words(body: str) -> list[str]:
    """Tokens without the directives that say where a section lies and how large it is."""
    lines = [line for line in body.splitlines() if not re.match(r"\s*\.(?:section\w*|type|size|global|weak|other|align)\b", line)]
    return [word for line in lines for word in _SYMBOL.findall(line)]


def _sass_functions(name: str, body: str) -> Iterator[Piece]:
    registers = re.findall(r"SHI_REGISTERS=\d+", body)
    starts = [m.start() for m in re.finditer(r"^(?:\.text\.[\w.]+|\$[$.\w]+):", body, re.M)]
    for start, end in zip(starts, [*starts[1:], len(body)], strict=True):
        part = body[start:end]
        names = frozenset(_LABEL.findall(part))
        if name in names:  # a kernel's own start, which relocations call by the kernel's name
            names |= {name.removeprefix(".text.")}
        yield Piece((*(registers if name in names else ()), *_words(part)), names, "")
