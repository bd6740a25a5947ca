"""Metal sources as C++. The ``[[...]]`` attributes of a kernel's parameters say what the entry passes to it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ferrum.devices.emulate.compiler import check_unit, find_cxx
from ferrum.devices.emulate.source import Edit, Entry, Kernel, apply, assemble, blank, matching, owner, split_arguments

# Found by #include, with nothing in them: what they declare is there already.
HEADERS = ("metal_stdlib", "metal_simdgroup", "metal_simdgroup_matrix", "metal_atomic", "metal_math", "metal_compute",
           "metal_integer", "metal_matrix", "metal_types", "metal_pack")  # fmt: skip

# A parameter that is a reference: its bytes are either given as a value or lie in a buffer.
REFERENCE = 1 << 20

_KERNEL = re.compile(r"\bkernel\s+void\s+(\w+)\s*\(")
_BOUNDS = re.compile(r"max_total_threads_per_threadgroup\s*\(([^)]*)\)")
_PARAM = re.compile(
    r"\s*(?P<type>.*?)\s*(?P<name>\w+)\s*\[\[\s*(?P<attribute>\w+)\s*(?:\(\s*(?P<index>\w+)\s*\))?\s*\]\]\s*", re.S
)
_ATTRIBUTE = re.compile(r"\[\[[^\[\]]*\]\]")
_LITERAL = re.compile(r"(?<![\w.])(?:\d+\.\d*|\.?\d+)(?:[eE][+-]?\d+)?(?=(?:h|bf)\b)")
# Memory that threadgroups of one launch share, as the language writes it since 3.2.
_COHERENT = re.compile(r"\bcoherent\s*\(\s*device\s*\)\s+device\b")
_THREADGROUP = re.compile(r"(?<=[;{}])\s*(threadgroup)\b(?P<rest>[^;=\[(]*)")

_POSITIONS = {
    "thread_position_in_threadgroup": "emu_position(emu.current->index)",
    "threadgroup_position_in_grid": "emu_position(emu.block_index)",
    "threads_per_threadgroup": "emu_position(emu.block)",
    "dispatch_threads_per_threadgroup": "emu_position(emu.block)",
    "threadgroups_per_grid": "emu_position(emu.grid)",
    "thread_position_in_grid": "emu_position_in_grid()",
    "thread_index_in_threadgroup": "(uint)emu.current->linear",
    "thread_index_in_simdgroup": "(uint)emu.current->lane",
    "simdgroup_index_in_threadgroup": "(uint)emu.current->warp->index",
    "simdgroups_per_threadgroup": "(uint)emu.num_warps",
    "threads_per_simdgroup": "32u",
    "thread_execution_width": "32u",
}


def find_kernels(text: str) -> list[Kernel]:
    """The kernel functions with a body; ``text`` is without comments."""
    found = []
    for mark in _KERNEL.finditer(text):
        closing = matching(text, mark.end() - 1)
        body = re.compile(r"\s*(\[\[.*?\]\]\s*)*\{", re.S).match(text, closing + 1)
        if not body:
            continue
        # the attribute stands before "kernel" or after the parameters
        before = text[max(text.rfind(";", 0, mark.start()), text.rfind("}", 0, mark.start())) + 1 : mark.start()]
        bounds = _BOUNDS.search(before) or _BOUNDS.search(body[0])
        stop = matching(text, body.end() - 1)
        found.append(Kernel(mark[1], text[mark.end() : closing], bounds[1] if bounds else "0", body.end() - 1, stop))
    return found


def _argument(kernel: Kernel, param: str) -> tuple[str, int, str]:
    """(what is passed for a parameter, its buffer index or -1, its bytes as C++)."""
    match = _PARAM.fullmatch(param)
    if not match:
        raise ValueError(f"kernel {kernel.name}: the parameter {param.strip()!r} has no attribute")
    kind, attribute, index = match["type"], match["attribute"], match["index"]
    if attribute == "threadgroup":
        if int(index or 0) != 0:
            raise ValueError(f"kernel {kernel.name}: one threadgroup buffer is what a launch can have, index 0")
        return f"({kind})emu.dynamic", -1, ""
    if attribute != "buffer":
        if attribute not in _POSITIONS:
            raise ValueError(f"kernel {kernel.name}: the attribute {attribute} is not known")
        return _POSITIONS[attribute], -1, ""
    number = int(index or 0)
    if kind.endswith("&"):
        return f"*({kind[:-1]} *)args[{number}]", number, f"(int)sizeof({kind[:-1]}) | {REFERENCE}"
    return f"*({kind} *)args[{number}]", number, "-8"


def _entry(kernel: Kernel) -> tuple[Entry, str]:
    """The row of the table, and the function that it points to."""
    params = [p for p in split_arguments(kernel.params) if p.strip()]
    passed = [_argument(kernel, p) for p in params]
    sizes = {index: size for _, index, size in passed if index >= 0}
    if sorted(sizes) != list(range(len(sizes))):
        raise ValueError(f"kernel {kernel.name}: buffer indices are {sorted(sizes)}, not 0 to {len(sizes) - 1}")
    call = ", ".join(text for text, _, _ in passed)
    listed = ", ".join(sizes[i] for i in sorted(sizes))
    call = _COHERENT.sub("coherent_device", call)
    code = (
        f"static void emu_enter_{kernel.name}(void **args) {{ {kernel.name}({call}); }}\n"
        f"static const int emu_sizes_{kernel.name}[] = {{{listed}{', ' if listed else ''}0}};"
    )
    return Entry(kernel, f"emu_enter_{kernel.name}", f"emu_sizes_{kernel.name}", str(len(sizes))), code


def _edits(text: str, kernels: list[Kernel]) -> Iterator[Edit]:
    # Clang would ignore the attributes, but [[threadgroup(0)]] has a macro in it.
    for match in _ATTRIBUTE.finditer(text):
        yield Edit(match.start(), match.end(), "")
    for match in _COHERENT.finditer(text):
        yield Edit(match.start(), match.end(), "coherent_device")
    for match in _LITERAL.finditer(text):
        yield Edit(match.end(), match.end(), "_")
    for match in _THREADGROUP.finditer(text):
        if "*" not in match["rest"] and "&" not in match["rest"] and match["rest"].strip():
            yield Edit(match.start(1), match.end(1), f"EMU_THREADGROUP({owner(kernels, match.start(1))})")


def _body(source: str) -> tuple[str, list[Kernel]]:
    text = blank(source)
    kernels = find_kernels(text)
    return apply(source, _edits(text, kernels)), kernels


def translate(source: str) -> str:
    """A C++ translation unit with the kernels of ``source``. Raises ValueError for a parameter that cannot be passed."""
    body, kernels = _body(source)
    made = [_entry(kernel) for kernel in kernels]
    # Every thread of a threadgroup has to reach every barrier: one that has exited does not count as arrived.
    return assemble("metal.h", body, [entry for entry, _ in made], [code for _, code in made], exits_fault=True)


def check(source: str) -> str:
    """What clang says about address spaces and types in ``source``; empty when all is well."""
    body, _ = _body(source)
    unit = "\n".join(['#include "metal.h"', "namespace {", '#line 1 "kernels"', body, "}", ""])
    return check_unit(unit, HEADERS, find_cxx(True), ("EMU_CHECK",))
