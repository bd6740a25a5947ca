"""From a kernel source to one that a C++ compiler takes: where kernels are, and what is added around them.

The source's own lines are compiled as they are, without comments and but for the few things that C++ cannot express by macros:
declarations of shared (threadgroup) variables get the number of their kernel, so that a launch can poison exactly these for
each block.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_COMMENT = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"', re.S)
_DIRECTIVE = re.compile(r"^[ \t]*#(?:\\\n|[^\n])*", re.M)
_CLOSING = {"(": ")", "{": "}", "[": "]"}


@dataclass(frozen=True)
class Edit:
    """Characters ``start`` to ``stop`` of a source become ``text``."""

    start: int
    stop: int
    text: str


@dataclass(frozen=True)
class Kernel:
    """A kernel in a source: the text of its parameters, its largest block ("0": any), its body from brace to brace."""

    name: str
    params: str
    max_threads: str
    start: int
    stop: int


@dataclass(frozen=True)
class Entry:
    """C++ of a row of the kernel table: the function that calls the kernel, the sizes of its parameters, their number."""

    kernel: Kernel
    enter: str
    sizes: str
    count: str


def blank(text: str) -> str:
    """``text`` with comments, strings and directives replaced by blanks: every other character stays at its place."""
    for kind in (_COMMENT, _DIRECTIVE):
        text = kind.sub(lambda m: re.sub(r"[^\n]", " ", m[0]), text)
    return text


def without_comments(text: str) -> str:
    """``text`` with a blank, and its lines, for each comment: sources that differ in nothing else are compiled once."""
    return _COMMENT.sub(lambda m: m[0] if m[0].startswith('"') else " " + "\n" * m[0].count("\n"), text)


def matching(text: str, start: int) -> int:
    """The index of the bracket that closes the one at ``start``."""
    opening, closing, depth = text[start], _CLOSING[text[start]], 0
    for i in range(start, len(text)):
        depth += (text[i] == opening) - (text[i] == closing)
        if depth == 0:
            return i
    raise ValueError(f"no bracket closes the one at character {start}")


def split_arguments(text: str) -> list[str]:
    """The pieces between commas that are in no brackets."""
    pieces, depth = [""], 0
    for c in text:
        depth += (c in "([{<") - (c in ")]}>")
        if c == "," and depth == 0:
            pieces.append("")
        else:
            pieces[-1] += c
    return pieces


def apply(text: str, edits: Iterable[Edit]) -> str:
    """``text`` after the edits, with as many lines as before."""
    for e in sorted(edits, key=lambda e: e.start, reverse=True):
        text = text[: e.start] + e.text + "\n" * text.count("\n", e.start, e.stop) + text[e.stop :]
    return text


def owner(kernels: Sequence[Kernel], at: int) -> int:
    """The number, from 1, of the kernel whose body holds the character ``at``; 0 when it is in none."""
    return next((i for i, kernel in enumerate(kernels, 1) if kernel.start < at < kernel.stop), 0)


def assemble(header: str, body: str, entries: Sequence[Entry], code: Sequence[str] = (), *, exits_fault: bool = False) -> str:
    """A translation unit: the header, the source in a namespace of its own, the table of its kernels and what is exported.

    ``code``: what the entries refer to. ``exits_fault``: a thread that exits before a barrier of its block is a fault.
    """
    rows = [
        f'  {{"{e.kernel.name}", {e.enter}, EMU_SHARED_START({i}), EMU_SHARED_STOP({i}), (unsigned)({e.kernel.max_threads}), '
        f"{e.count}, {e.sizes}}},"
        for i, e in enumerate(entries, 1)
    ]
    # Shared variables of templates and inline functions must not be merged with others: all of the source is internal.
    return "\n".join(
        [
            f'#include "{header}"',
            '#include "entry.h"',
            *(f"EMU_SHARED_RANGE({i})" for i in range(len(entries) + 1)),
            "namespace {",
            '#line 1 "kernels"',
            without_comments(body),
            '#line 1 "entries"',
            *code,
            "}",
            "static const EmuKernel emu_kernels[] = {",
            *rows,
            "  {0, 0, EMU_SHARED_START(0), EMU_SHARED_STOP(0), 0, 0, 0},",
            "};",
            "EMU_EXPORT const EmuKernel *ferrum_emulate_kernels(void) { return emu_kernels; }",
            "EMU_EXPORT int ferrum_emulate_launch(int number, EmuLaunch *launch) {",
            f"  emu.exits_fault = {str(exits_fault).lower()};",
            f"  return emu_launch(launch, &emu_kernels[number], &emu_kernels[{len(entries)}]);",
            "}",
            "",
        ]
    )
