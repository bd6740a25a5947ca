"""A target is a value: what kind of machine, which features, and the numbers that kernels are built from."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar, TypeAlias

from ferrum.devices.cuda_archs import runs_on
from ferrum.devices.host import machine_arch, machine_features, machine_vendor
from ferrum.errors import FerrumError


@dataclass(frozen=True)
class Target:
    """A machine kind.

    ``lanes``: 32-bit lanes of a vector, also the rows of a weight tile. ``registers``: vector registers.
    ``requires``: features (as in /proc/cpuinfo) that a machine must have. ``cflags``: for gcc and clang alike.
    ``zig_cpu``/``zig_triple``: the same machine in zig's words, for cross compiling. ``slow_on``: vendors whose cores run what
    is new here at less than the rate of what it replaces; ``--target cpu`` passes over it there. ``variant``: what its code is
    called in a pack. ``unit``: rows of a tile and tiles of a unit of the weights, where several targets read the same ones;
    without it a tile is a vector, and a unit as many as products hold in registers. ``amx``: many rows are multiplied in the tile
    registers, sixteen rows by sixteen vectors of K, beside what ``simd`` has for few.
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
    slow_on: tuple[str, ...] = ()
    variant: str = "main"
    unit: tuple[int, int] | None = None
    amx: bool = False

    @property
    def variants(self) -> tuple[Target, ...]:
        """What a pack for this target has code for."""
        return (self,)

    @property
    def has_byte_pairs(self) -> bool:
        """Bytes are multiplied in pairs of neighbours, whose sums have 16 bits; elsewhere four at once, or each alone."""
        return self.simd in ("avx2", "avx512")

    @property
    def has_bf16_dot(self) -> bool:
        return self.simd == "avx512_bf16"

    @property
    def rounds_to_bf16(self) -> bool:
        """Rows that meet bfloat16 weights are bfloat16: by the dot product of vectors, or by that of tiles."""
        return self.has_bf16_dot or self.amx


_AVX2 = ("avx2", "fma", "f16c", "bmi2")
_AVX512 = (*_AVX2, "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd")
_V3_FLAGS = ("-mavx2", "-mfma", "-mf16c", "-mbmi", "-mbmi2", "-mlzcnt", "-mpopcnt")
_V4_FLAGS = (*_V3_FLAGS, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512cd", "-mprefer-vector-width=512")
_ZIG_V4 = "x86_64_v4"
_AMX = ("amx_tile", "amx_int8", "amx_bf16")
_X86 = "x86_64-linux-gnu.2.28"
_ARM = "aarch64-linux-gnu.2.28"


@dataclass(frozen=True)
class AnyCpu:
    """Several targets in one pack: code for each, best first, over one layout of the weights and the cache.

    A CPU takes the first of the ``variants`` whose features it has. What all of them require is required of the pack's machine.
    """

    name: str
    arch: str
    variants: tuple[Target, ...]
    device: ClassVar[str] = "cpu"

    @property
    def requires(self) -> tuple[str, ...]:
        return tuple(f for f in self.variants[-1].requires if all(f in variant.requires for variant in self.variants))


@dataclass(frozen=True)
class GpuTarget:
    """A GPU kind: what kernels may use and the limits they must keep.

    The name is that of the chip; ``arch`` is what the compiler is told: plain, so that later chips of a generation run the code
    too, until a kernel needs an instruction of one chip (``sm_90a``) or family. ``cards``: what it is sold as.
    ``shared_bytes``: shared (threadgroup) memory that one block may have. ``units``: multiprocessors or cores of the common card
    of the kind; splits of small products are chosen for it. ``stage_bytes``: shared memory for which copies should be under way
    on one unit; with 0 kernels read where things lie. ``driver``: the oldest driver (CUDA) or the language (Metal) that takes the
    code.
    """

    name: str
    device: str
    arch: str
    shared_bytes: int
    units: int
    stage_bytes: int
    features: tuple[str, ...]
    driver: str
    cards: str
    max_threads: int = 1024
    variant: ClassVar[str] = "main"

    @property
    def variants(self) -> tuple[GpuTarget, ...]:
        return (self,)

    @property
    def requires(self) -> tuple[str, ...]:
        return (self.arch,)

    @property
    def has_bf16(self) -> bool:
        """bfloat16 arithmetic, on CUDA its matrix products too; without it the bits are converted."""
        return "bf16" in self.features

    @property
    def has_async_copy(self) -> bool:
        """Copies from global to shared memory that a warp does not wait for."""
        return "async" in self.features

    @property
    def has_staging(self) -> bool:
        """Whether kernels bring what they read into shared memory, some pieces ahead."""
        return self.stage_bytes > 0

    @property
    def has_early_start(self) -> bool:
        """A launch may start while the one before it ends, and waits for it itself."""
        return "early" in self.features


_KIB = 1024
_AMPERE = ("bf16", "async")
_HOPPER = (*_AMPERE, "early")
_APPLE = ("bf16",)
GPU_TARGETS: tuple[GpuTarget, ...] = (
    GpuTarget("cuda-sm75", "cuda", "sm_75", 64 * _KIB, 40, 16 * _KIB, (), "580", "T4, RTX 20"),
    GpuTarget("cuda-sm80", "cuda", "sm_80", 163 * _KIB, 108, 64 * _KIB, _AMPERE, "580", "A100, A30"),
    GpuTarget("cuda-sm86", "cuda", "sm_86", 99 * _KIB, 82, 32 * _KIB, _AMPERE, "580", "RTX 30, A10, A40"),
    GpuTarget("cuda-sm87", "cuda", "sm_87", 163 * _KIB, 16, 32 * _KIB, _AMPERE, "580", "Jetson Orin"),
    GpuTarget("cuda-sm89", "cuda", "sm_89", 99 * _KIB, 128, 32 * _KIB, _AMPERE, "580", "RTX 40, L4, L40S"),
    GpuTarget("cuda-sm90", "cuda", "sm_90", 227 * _KIB, 132, 64 * _KIB, _HOPPER, "580", "H100, H200, GH200"),
    GpuTarget("cuda-sm100", "cuda", "sm_100", 227 * _KIB, 148, 64 * _KIB, _HOPPER, "580", "B200, GB200"),
    GpuTarget("cuda-sm103", "cuda", "sm_103", 227 * _KIB, 160, 64 * _KIB, _HOPPER, "580", "B300, GB300"),
    GpuTarget("cuda-sm120", "cuda", "sm_120", 99 * _KIB, 170, 32 * _KIB, _HOPPER, "580", "RTX 50, RTX PRO Blackwell"),
    GpuTarget("cuda-sm121", "cuda", "sm_121", 99 * _KIB, 48, 32 * _KIB, _HOPPER, "580", "GB10 (DGX Spark)"),
    GpuTarget("metal-m1", "metal", "apple-m1", 32 * _KIB, 8, 0, (), "metal3.2", "M1"),
    GpuTarget("metal-m2", "metal", "apple-m2", 32 * _KIB, 10, 0, _APPLE, "metal3.2", "M2"),
    GpuTarget("metal-m3", "metal", "apple-m3", 32 * _KIB, 10, 0, _APPLE, "metal3.2", "M3"),
    GpuTarget("metal-m4", "metal", "apple-m4", 32 * _KIB, 10, 0, _APPLE, "metal3.2", "M4"),
    GpuTarget("metal-m5", "metal", "apple-m5", 32 * _KIB, 10, 0, _APPLE, "metal4.0", "M5"),
)  # fmt: skip

# Best first: a machine takes the first whose features it has.
TARGETS: tuple[Target, ...] = (
    # all of its vectors are those of avx512-vnni: the cores that have tiles are the ones whose bfloat16 dot product is slow
    Target("cpu-amx", "cpu", "x86_64", 16, 32, "avx512_vnni", (*_AVX512, "avx512_vnni", *_AMX),
           (*_V4_FLAGS, "-mavx512vnni", "-mamx-tile", "-mamx-int8", "-mamx-bf16"), _X86,
           "+".join((_ZIG_V4, "avx512vnni", *_AMX)), amx=True),
    Target("cpu-avx512-bf16", "cpu", "x86_64", 16, 32, "avx512_bf16", (*_AVX512, "avx512_vnni", "avx512_bf16"),
           (*_V4_FLAGS, "-mavx512vnni", "-mavx512bf16"), _X86, _ZIG_V4 + "+avx512vnni+avx512bf16",
           # a core of Intel starts a 512-bit vdpbf16ps every second cycle and two float multiply-adds in each: widening wins
           ("GenuineIntel",)),
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


def _variant(name: str, *requires: str, unit: tuple[int, int] | None = None) -> Target:
    """A target as one of several, which may ask for more where a later one is faster without."""
    target = next(target for target in TARGETS if target.name == name)
    return replace(target, variant=name.removeprefix("cpu-"), requires=(*target.requires, *requires), unit=unit)


# The unit that AVX-512 holds in registers; shorter vectors read parts of it, one after the other.
_X86_UNIT = (16, 4)
ANY_CPUS: tuple[AnyCpu, ...] = (
    AnyCpu("cpu-x86_64-any", "x86_64", (
        _variant("cpu-amx", unit=_X86_UNIT),
        _variant("cpu-avx512-bf16", "AuthenticAMD", unit=_X86_UNIT),  # the cores of its other maker are faster by widening
        _variant("cpu-avx512-vnni", unit=_X86_UNIT),
        _variant("cpu-avx512", unit=_X86_UNIT),
        _variant("cpu-avx2", unit=_X86_UNIT),
        _variant("cpu-x86_64", unit=_X86_UNIT),
    )),
    # vectors of one length, and as many of them
    AnyCpu("cpu-arm64-any", "aarch64", (
        _variant("cpu-arm64-i8mm"), _variant("cpu-arm64-dotprod"), _variant("cpu-arm64"),
    )),
)  # fmt: skip
AnyTarget: TypeAlias = Target | GpuTarget | AnyCpu
_ALL: tuple[AnyTarget, ...] = (*TARGETS, *ANY_CPUS, *GPU_TARGETS)
BY_NAME = {t.name: t for t in _ALL}


def best_target(arch: str, features: Iterable[str], vendor: str = "") -> Target:
    """The first target whose required features are all there and that suits the vendor's cores.

    Raises FerrumError for an architecture without any.
    """
    have = frozenset(features)
    for target in TARGETS:
        if target.arch == arch and have.issuperset(target.requires) and vendor not in target.slow_on:
            return target
    known = ", ".join(sorted({t.arch for t in TARGETS}))
    raise FerrumError("no-target", f"no CPU target fits {arch}", sys.platform, f"targets exist for {known}")


def parse_target(text: str) -> AnyTarget:
    """``cpu``, ``cuda`` and ``metal`` are this machine's; anything else is a name from the lists above.

    Raises FerrumError for an unknown name and for a GPU that is not there.
    """
    if text == "cpu":
        return best_target(machine_arch(), machine_features(), machine_vendor())
    if text in ("cuda", "metal"):
        return gpu_here(text)
    if text not in BY_NAME:
        raise FerrumError(
            "unknown-target", f"no target is called {text!r}", "--target", "use cpu, cuda, metal or one of " + ", ".join(BY_NAME)
        )
    return BY_NAME[text]


def parse_targets(text: str) -> list[AnyTarget]:
    """The targets of a list with commas, in its order. Raises FerrumError for an unknown name or one that is there twice."""
    targets = [parse_target(part.strip()) for part in text.split(",")]
    twice = sorted({t.name for t in targets if sum(other.name == t.name for other in targets) > 1})
    if twice:
        raise FerrumError("bad-option", f"{twice[0]} is there twice", "--target", "name each target once")
    return targets


def cuda_target(major: int, minor: int) -> GpuTarget | None:
    """The best target for a compute capability: its own, else the newest earlier one whose code it runs."""
    fitting = [t for t in GPU_TARGETS if t.device == "cuda" and runs_on((major, minor), t.arch)]
    return fitting[-1] if fitting else None


def gpu_here(device: str) -> GpuTarget:
    """The target of this machine's GPU. Raises FerrumError when there is none or it is too old."""
    step = "name the GPU, for example --target " + ("cuda-sm89" if device == "cuda" else "metal-m1")
    found = None
    if device == "cuda":
        capability = cuda_capability()
        found = cuda_target(*capability) if capability else None
    else:
        chip = apple_chip()
        found = next((t for t in GPU_TARGETS if t.arch == f"apple-{chip}"), None)
    if found is None:
        raise FerrumError("no-target", f"no {device} device that can be compiled for is in this machine", "--target", step)
    return found


def cuda_capability() -> tuple[int, int] | None:
    """Compute capability of the first CUDA device, or nothing without a driver, a device or the bindings."""
    try:
        from cuda.bindings import driver
    except ImportError:
        return None
    try:
        if driver.cuInit(0)[0] != driver.CUresult.CUDA_SUCCESS:
            return None
        status, device = driver.cuDeviceGet(0)
        if status != driver.CUresult.CUDA_SUCCESS:
            return None
        kinds = driver.CUdevice_attribute
        major = driver.cuDeviceGetAttribute(kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device)[1]
        minor = driver.cuDeviceGetAttribute(kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device)[1]
    except Exception:  # the bindings raise an error of their own when the driver's library is missing
        return None
    return int(major), int(minor)


def apple_chip() -> str:
    """``m1`` … of this Mac, or nothing."""
    if sys.platform != "darwin":
        return ""
    result = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False)
    found = re.search(r"Apple (M\d+)", result.stdout)
    return found[1].lower() if found else ""
