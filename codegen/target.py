"""A target is a value: what kind of machine, which features, and the numbers that kernels are built from."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass

from ferrum.devices.host import machine_arch, machine_features
from ferrum.errors import FerrumError


@dataclass(frozen=True)
class Target:
    """A machine kind.

    ``lanes``: 32-bit lanes of a vector, also the rows of a weight tile. ``registers``: vector registers.
    ``requires``: features (as in /proc/cpuinfo) that a machine must have. ``cflags``: for gcc and clang alike.
    ``zig_cpu``/``zig_triple``: the same machine in zig's words, for cross compiling.
    """

    name: str
    device: str
    arch: str
    lanes: int
    registers: int
    simd: str
    requires: tuple[str, ...]
    cflags: tuple[str, ...]
    zig_triple: str
    zig_cpu: str

    @property
    def has_int8_dot(self) -> bool:
        return self.simd in ("avx512_bf16", "avx512_vnni", "neon_dotprod", "neon_i8mm")

    @property
    def has_bf16_dot(self) -> bool:
        return self.simd == "avx512_bf16"


_AVX2 = ("avx2", "fma", "f16c", "bmi2")
_AVX512 = (*_AVX2, "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd")
_V3_FLAGS = ("-mavx2", "-mfma", "-mf16c", "-mbmi", "-mbmi2", "-mlzcnt", "-mpopcnt")
_V4_FLAGS = (*_V3_FLAGS, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512cd", "-mprefer-vector-width=512")
_ZIG_V4 = "x86_64_v4"
_X86 = "x86_64-linux-gnu.2.28"
_ARM = "aarch64-linux-gnu.2.28"

# Best first: a machine takes the first whose features it has.
TARGETS: tuple[Target, ...] = (
    Target("cpu-avx512-bf16", "cpu", "x86_64", 16, 32, "avx512_bf16", (*_AVX512, "avx512_vnni", "avx512_bf16"),
           (*_V4_FLAGS, "-mavx512vnni", "-mavx512bf16"), _X86, _ZIG_V4 + "+avx512vnni+avx512bf16"),
    Target("cpu-avx512-vnni", "cpu", "x86_64", 16, 32, "avx512_vnni", (*_AVX512, "avx512_vnni"),
           (*_V4_FLAGS, "-mavx512vnni"), _X86, _ZIG_V4 + "+avx512vnni"),
    Target("cpu-avx512", "cpu", "x86_64", 16, 32, "avx512", _AVX512, _V4_FLAGS, _X86, _ZIG_V4),
    Target("cpu-avx2", "cpu", "x86_64", 8, 16, "avx2", _AVX2, _V3_FLAGS, _X86, "x86_64_v3"),
    Target("cpu-x86_64", "cpu", "x86_64", 4, 16, "sse2", (), (), _X86, "x86_64"),
    Target("cpu-arm64-i8mm", "cpu", "aarch64", 4, 32, "neon_i8mm", ("asimd", "asimddp", "i8mm"),
           ("-march=armv8.2-a+dotprod+i8mm",), _ARM, "generic+v8_2a+dotprod+i8mm"),
    Target("cpu-arm64-dotprod", "cpu", "aarch64", 4, 32, "neon_dotprod", ("asimd", "asimddp"),
           ("-march=armv8.2-a+dotprod",), _ARM, "generic+v8_2a+dotprod"),
    Target("cpu-arm64", "cpu", "aarch64", 4, 32, "neon", ("asimd",), (), _ARM, "generic"),
)  # fmt: skip
BY_NAME = {t.name: t for t in TARGETS}


def best_target(arch: str, features: Iterable[str]) -> Target:
    """The first target whose required features are all there. Raises FerrumError for an architecture without any."""
    have = frozenset(features)
    for target in TARGETS:
        if target.arch == arch and have.issuperset(target.requires):
            return target
    known = ", ".join(sorted({t.arch for t in TARGETS}))
    raise FerrumError("no-target", f"no CPU target fits {arch}", sys.platform, f"targets exist for {known}")


def parse_target(text: str) -> Target:
    """``cpu`` is this machine; anything else is a name from ``TARGETS``. Raises FerrumError for an unknown name."""
    if text == "cpu":
        return best_target(machine_arch(), machine_features())
    if text not in BY_NAME:
        raise FerrumError(
            "unknown-target", f"no target is called {text!r}", "--target", "use cpu or one of " + ", ".join(BY_NAME)
        )
    return BY_NAME[text]
