"""CUDA sources as C++."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ferrum.devices.emulate.source import Edit, Entry, Kernel, apply, assemble, blank, matching, owner, split_arguments

# Found by #include, with nothing in them: what they declare is there already.
HEADERS = ("cuda_runtime.h", "cuda_fp16.h", "cuda_bf16.h", "cuda_fp8.h", "cuda/std/cstdint", "cuda/std/limits", "cstdint")

_GLOBAL = re.compile(r"\b__global__\b")
_QUALIFIER = re.compile(r"\b(__launch_bounds__|__cluster_dims__|__attribute__|__align__|alignas)\s*$")
_NAME = re.compile(r"(\w+)\s*$")
_BODY = re.compile(r"\s*\{")
_SHARED = re.compile(r"\b__shared__\b")
_DYNAMIC = re.compile(r"\bextern\s+__shared__\s+([^;\[]*?)\b(\w+)\s*\[\s*\]\s*;")
_ALIGNED = re.compile(r"(__align__|alignas)\s*\([^)]*\)")


def find_kernels(text: str) -> list[Kernel]:
    """The ``__global__`` functions with a body that are no templates; ``text`` is without comments."""
    found = []
    for mark in _GLOBAL.finditer(text):
        if text[: mark.start()].rstrip().endswith(">"):
            continue
        bounds, opening = "0", text.index("(", mark.end())
        while qualifier := _QUALIFIER.search(text, mark.end(), opening):
            closing = matching(text, opening)
            if qualifier[1] == "__launch_bounds__":
                bounds = split_arguments(text[opening + 1 : closing])[0].strip()
            opening = text.index("(", closing)
        closing = matching(text, opening)
        name, body = _NAME.search(text, mark.end(), opening), _BODY.match(text, closing + 1)
        if name and body:
            params = text[opening + 1 : closing]
            found.append(Kernel(name[1], params, bounds, body.end() - 1, matching(text, body.end() - 1)))
    return found


def _edits(text: str, kernels: list[Kernel]) -> Iterator[Edit]:
    dynamic = list(_DYNAMIC.finditer(text))
    for match in dynamic:
        kind, name = _ALIGNED.sub("", match[1]).strip(), match[2]
        if owner(kernels, match.start()):
            yield Edit(match.start(), match.end(), f"{kind} *const {name} = ({kind} *)emu.dynamic;")
        else:  # where it lies is known at the launch only
            line = text.count("\n", 0, match.start()) + 1
            yield Edit(match.start(), match.end(), f'\n#define {name} (({kind} *)emu.dynamic)\n#line {line} "kernels"\n')
    for match in _SHARED.finditer(text):
        if not any(d.start() < match.start() < d.end() for d in dynamic):
            yield Edit(match.start(), match.end(), f"EMU_SHARED({owner(kernels, match.start())})")


def translate(source: str) -> str:
    """A C++ translation unit with the kernels of ``source``."""
    text = blank(source)
    kernels = find_kernels(text)
    entries = []
    for kernel in kernels:
        signature = f"EmuSignature<decltype(&{kernel.name})>"
        entries.append(Entry(kernel, f"&{signature}::enter<&{kernel.name}>", f"{signature}::bytes", f"{signature}::count"))
    return assemble("cuda.h", apply(source, _edits(text, kernels)), entries)
