"""Which NVIDIA GPU runs which machine code: the one answer for check, load, verify, doctor and ``--target cuda``.

From the CUDA programming guide, "Binary Compatibility" and "Family-Specific Features": a cubin runs on GPUs of its major version
with an equal or later minor one; one for an architecture with an "a" on that chip only; one with an "f" on its family. A Tegra
shares no code with others: what is compiled for a desktop GPU does not load there, whatever the numbers say, nor the reverse.
"""

from __future__ import annotations

import re
from typing import TypeAlias

Capability: TypeAlias = tuple[int, int]

_ARCH = re.compile(r"sm_(\d+)(\d)([af]?)")
# Xavier, Orin, its successors in consoles and cars. Thor (11.0) is alone in its generation.
TEGRA: frozenset[Capability] = frozenset({(7, 2), (8, 7), (8, 8), (11, 0)})


def parse_arch(arch: str) -> tuple[Capability, str] | None:
    """``sm_90a`` as ((9, 0), "a"); nothing for what is no name of an architecture."""
    match = _ARCH.fullmatch(arch)
    return ((int(match[1]), int(match[2])), match[3]) if match else None


def runs_on(capability: Capability, arch: str) -> bool:
    """Whether a GPU of this compute capability runs machine code for ``arch`` (``sm_89``, ``sm_90a``, ``sm_120f`` …)."""
    parsed = parse_arch(arch)
    if parsed is None:
        return False
    named, special = parsed
    if special == "a" or capability in TEGRA or named in TEGRA:
        return capability == named
    return capability[0] == named[0] and capability[1] >= named[1]


def arch_of(capability: Capability) -> str:
    """``sm_89`` for (8, 9)."""
    return f"sm_{capability[0]}{capability[1]}"
