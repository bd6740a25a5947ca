"""The stand-in of the tile instructions against numpy: sums of bytes are exact, those of bfloat16 have the manual's bits."""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ferrum.codegen.prove import runs_here
from ferrum.codegen.render import TEMPLATES
from ferrum.codegen.toolchains.cxx import find_compiler
from ferrum.devices.host import machine_arch
from tests.codegen.tiles import TILES, with_tiles

ALONE = Path(__file__).parent / "tiles_alone.c"
SHAPES = ((16, 16, 16), (1, 16, 16), (5, 3, 16), (16, 8, 7), (3, 1, 1))
BYTES = {0: (np.int8, np.int8), 1: (np.int8, np.uint8), 2: (np.uint8, np.int8), 3: (np.uint8, np.uint8)}
Array = NDArray[Any]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not runs_here("x86_64", ("avx2", "fma")):
        pytest.skip("the stand-in computes with instructions of AVX2, which this CPU lacks")
    path: Path = tmp_path_factory.mktemp("tiles") / "tiles.so"
    source = path.with_suffix(".c")
    source.write_text(with_tiles(ALONE.read_text(encoding="utf-8")), encoding="utf-8")
    command = [
        *find_compiler(machine_arch()).command,
        "-std=gnu11",
        "-O2",
        "-mavx2",
        "-mfma",
        "-shared",
        "-fPIC",
        "-Wall",
        "-Werror",
    ]
    subprocess.run([*command, str(source), "-o", str(path)], check=True)
    return path


def product(library: Path, kind: int, a: Array, b: Array, c: Array, stream: int = 0) -> Array:
    """``c [m, n] + a [m, k] b [k, n]``; elements of a and b have four bytes."""
    out, (rows, words), columns = np.ascontiguousarray(c).copy(), a.shape[:2], b.shape[1]
    arrays = [np.ascontiguousarray(array) for array in (a, b)]
    assert all(array.nbytes == 4 * array.shape[0] * array.shape[1] for array in arrays)
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (*arrays, out)]
    ctypes.CDLL(str(library)).product(kind, rows, words, columns, *pointers, stream, 0)
    return out


@pytest.mark.parametrize("kind", BYTES)
@pytest.mark.parametrize("shape", SHAPES)
def test_sums_of_bytes_are_exact(library: Path, kind: int, shape: tuple[int, int, int]) -> None:
    m, k, n = shape
    rng = np.random.default_rng([kind, *shape])
    a, b = (
        rng.integers(0, 256, (*size, 4)).astype(np.uint8).view(t) for size, t in zip(((m, k), (k, n)), BYTES[kind], strict=True)
    )
    a.flat[:4] = b.flat[:4] = np.array(128, np.uint8).view(a.dtype)
    c = rng.integers(-(2**31), 2**31, (m, n)).astype(np.int32)  # sums wrap
    exact = c.astype(np.int64) + np.einsum("mki,kni->mn", a.astype(np.int64), b.astype(np.int64))
    for stream in (0, 1):
        assert (product(library, kind, a, b, c, stream) == exact.astype(np.uint32).astype(np.int32)).all()


LEAST = Fraction(1, 2**126)  # a normal number


def rounded(exact: Fraction, zero: float) -> np.float32:
    """The nearest float32, ties to even; what is below the normal numbers once rounded is a zero. ``zero``: an exact one."""
    if not exact:
        return np.float32(zero)
    size = abs(exact)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent -= size < Fraction(2) ** exponent
    quantum = Fraction(2) ** (exponent - 23)
    value = round(size / quantum) * quantum  # ties to even
    if value < LEAST:
        value = Fraction(0)
    return np.float32(np.copysign(np.inf if value >= Fraction(2) ** 128 else float(value), -1.0 if exact < 0 else 1.0))


def plain(x: np.float32) -> np.float32:
    """Denormals are zeros on the way in."""
    return x if abs(x) >= float(LEAST) else np.float32(np.copysign(np.float32(0), x))


def fma(x: np.float32, y: np.float32, acc: np.float32) -> np.float32:
    x, y = plain(x), plain(y)
    product = float(x) * float(y)  # of its sign, where it is zero
    zero = float(acc) if not acc and np.signbit(acc) == np.signbit(product) and not product else 0.0
    return rounded(Fraction(float(x)) * Fraction(float(y)) + Fraction(float(acc)), zero)


def add(x: np.float32, y: np.float32) -> np.float32:
    x, y = plain(x), plain(y)
    zero = float(x) if not x and not y and np.signbit(x) == np.signbit(y) else 0.0
    return rounded(Fraction(float(x)) + Fraction(float(y)), zero)


def by_the_manual(a: Array, b: Array, c: Array) -> Array:
    """``a [m, k, 2]``, ``b [k, n, 2]`` bfloat16 bits, ``c [m, n]`` float32: halves of pairs apart, then both, then the tile."""
    wide = [(bits.astype(np.uint32) << 16).view(np.float32) for bits in (a, b)]
    out = c.copy()
    for m in range(a.shape[0]):
        for n in range(b.shape[1]):
            halves = []
            for half in (0, 1):
                total = np.float32(0)
                for k in range(a.shape[1]):
                    total = fma(wide[0][m, k, half], wide[1][k, n, half], total)
                halves.append(total)
            out[m, n] = add(out[m, n], add(*halves))
    return out


def normal_bits(rng: np.random.Generator, *shape: int) -> Array:
    return (rng.normal(size=shape).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def tiny_bits(rng: np.random.Generator, *shape: int) -> Array:
    """Of sizes whose products and sums lie around the least normal number, denormals and zeros of both signs among them."""
    exponent = rng.choice([0, 0, 1, 30, 62, 63, 64, 65], shape).astype(np.uint16)
    sign, fraction = (rng.integers(0, size, shape).astype(np.uint16) for size in (2, 128))
    return sign << np.uint16(15) | exponent << np.uint16(7) | fraction


def far_bits(rng: np.random.Generator, *shape: int) -> Array:
    """Of sizes so far apart that a sum with one rounding differs from that of two."""
    exponent = (127 + rng.integers(-20, 21, shape)).astype(np.uint16)
    return (
        rng.integers(0, 2, shape).astype(np.uint16) << np.uint16(15)
        | exponent << np.uint16(7)
        | rng.integers(0, 128, shape).astype(np.uint16)
    )


@pytest.mark.parametrize("bits", [normal_bits, tiny_bits, far_bits])
@pytest.mark.parametrize("shape", [(3, 16, 4), (2, 5, 16), (16, 2, 3)])
def test_sums_of_bfloat16_have_the_manuals_bits(library: Path, bits: Callable[..., Array], shape: tuple[int, int, int]) -> None:
    m, k, n = shape
    rng = np.random.default_rng([*shape, ord(bits.__name__[0])])
    a, b, c = bits(rng, m, k, 2), bits(rng, k, n, 2), (bits(rng, m, n).astype(np.uint32) << 16).view(np.float32)
    expected = by_the_manual(a, b, c)
    assert (product(library, 4, a, b, c).view(np.uint32) == expected.view(np.uint32)).all()


def test_the_order_of_sums_shows(library: Path) -> None:
    """A reference in another order must not agree, or the one above would prove nothing."""
    rng = np.random.default_rng(1)
    a, b, c = far_bits(rng, 16, 16, 2), far_bits(rng, 16, 16, 2), np.zeros((16, 16), np.float32)
    wide = [(x.astype(np.uint32) << 16).view(np.float32).astype(np.float64) for x in (a, b)]
    exact = np.einsum("mki,kni->mn", *wide).astype(np.float32)
    in_turn = c.copy()
    for k in range(16):
        for half in (0, 1):
            in_turn = (in_turn + wide[0][:, k, None, half] * wide[1][None, k, :, half]).astype(np.float32)
    got = product(library, 4, a, b, c)
    assert (got != in_turn).any() and (got != exact).any() and np.allclose(got, exact, rtol=1e-3, atol=np.abs(exact).max() * 1e-5)


FAULTS = {
    1: "#GP, no such palette", 2: "#GP, a reserved byte", 3: "#GP, a tile is larger", 4: "#GP, a tile has rows without bytes",
    5: "#UD, the shapes", 6: "#GP, a ninth tile", 7: "#UD, no configuration", 8: "#UD, no configuration",
    9: "#UD, a tile is named twice", 10: "#UD, the tile is not configured",
}  # fmt: skip


def test_what_the_hardware_refuses_ends_the_program(library: Path) -> None:
    text = "import ctypes, sys; m = [ctypes.create_string_buffer(1024) for _ in range(3)]; " \
           "ctypes.CDLL(sys.argv[1]).product(0, 16, 16, 16, *m, 0, int(sys.argv[2]))"  # fmt: skip
    for fault, said in {0: "", **FAULTS}.items():
        ran = subprocess.run([sys.executable, "-c", text, str(library), str(fault)], capture_output=True, text=True, check=False)
        assert (ran.returncode != 0) == (fault != 0) and said in ran.stderr, (fault, ran.stderr)


def test_the_same_source_has_the_instructions(tmp_path: Path) -> None:
    """A configuration that is written before it is loaded must be stored, which some compilers would leave out."""
    if machine_arch() != "x86_64":
        pytest.skip("this compiler makes no code for x86-64")
    command = [*find_compiler("x86_64").command, "-std=gnu11", "-O3", "-mamx-tile", "-mamx-int8", "-mamx-bf16", "-S", str(ALONE)]
    subprocess.run([*command, "-o", str(tmp_path / "alone.s")], check=True)
    lines = [line.split()[0] for line in (tmp_path / "alone.s").read_text().splitlines() if line.startswith("\t")]
    before = lines[: lines.index("ldtilecfg")]
    assert {"tileloadd", "tileloaddt1", "tilestored", "tilezero", "tilerelease", "tdpbf16ps"} <= set(lines)
    assert {f"tdpb{kinds}d" for kinds in ("ss", "su", "us", "uu")} <= set(lines)
    assert sum(line.startswith("mov") for line in before) >= 6  # rows and bytes of three tiles


def test_the_stand_in_names_every_tile_instruction_of_the_templates() -> None:
    """What a template calls and the stand-in lacks would be the instruction itself."""
    called = {
        name
        for path in (TEMPLATES / "cpu").rglob("*")
        if path.is_file()
        for name in re.findall(r"(?<![}\w])_tile_\w+", path.read_text())
    }
    assert called <= set(re.findall(r"#define (_tile_\w+)", TILES))
