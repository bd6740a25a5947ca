"""Products of every format for CPUs that are not here: compiled for them, and run with plain C in place of their instructions.

The stand-ins (``stand_ins.h``) take each instruction at its word, so what runs is all of a template but the compiler's choice of
registers; that is what ``tests/codegen/test_targets.py`` has qemu for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ferrum.codegen.kernels.linear.cpu import Blocking
from ferrum.codegen.layouts import Format
from ferrum.codegen.layouts.activations import ActFormat
from ferrum.codegen.prove import runs_here
from ferrum.codegen.target import TARGETS, Target, parse_target
from ferrum.codegen.toolchains.cxx import CToolchain, find_compiler
from tests.codegen import kernel_harness, test_kernels
from tests.codegen.test_kernels import FORMATS, HERE, Product, run_products
from tests.codegen.tiles import with_tiles

AWAY = [t for t in TARGETS if t not in HERE]
AVX2 = parse_target("cpu-avx2")
assert isinstance(AVX2, Target)
PLAIN = replace(AVX2, cflags=(*AVX2.cflags, "-O1", "-Wno-psabi"))  # for itself, not for its speed
# Instructions that are written out, which have a form in C beside them.
_BY_HAND = ("#if defined(SIMD_avx512_bf16) || defined(SIMD_avx512_vnni)\n#define DOT_U8S8_AT", "#if LANES == 16\n#define FMA_AT")


_REGISTER = '#define ROOF_OPAQUE(x) __asm__ volatile("" : "+v"(x))'


def in_plain_c(source: str) -> str:
    for text in _BY_HAND:
        assert source.count(text) == 1
        source = source.replace(text, "#if 0\n" + text.partition("\n")[2])
    assert source.count(_REGISTER) == 1
    source = source.replace(_REGISTER, _REGISTER.replace("+v", "+m"))
    return with_tiles((Path(__file__).parent / "stand_ins.h").read_text(encoding="utf-8") + source)


@pytest.fixture(autouse=True)
def few_registers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that are quickly compiled, and high enough for products that load a row of x themselves."""
    usual = test_kernels.blocking

    def small(target: Target, fmt: Format, tuned: Mapping[str, Blocking], act: ActFormat | None = None) -> Blocking:
        return replace(usual(target, fmt, tuned, act), rows=4, tiles=2, chunk_kib=8)

    monkeypatch.setattr(test_kernels, "blocking", small)


def products(target: Target) -> list[Product]:
    """Every other format, those between for the next target; sizes leave a part of the last unit and of the last chunk."""
    names = FORMATS[AWAY.index(target) % 2 :: 2]
    return [Product(target, 70 + 2 * i, (256, 320, 512)[i % 3], name) for i, name in enumerate(names)]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("target", AWAY, ids=lambda t: t.name)
def test_products_are_right_in_plain_c(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    if not runs_here(PLAIN.arch, PLAIN.requires):
        pytest.skip("stand-ins are compiled for AVX2, which this CPU lacks")
    compiled = kernel_harness.compiled
    monkeypatch.setattr(kernel_harness, "find_compiler", lambda arch: find_compiler(PLAIN.arch))
    monkeypatch.setattr(
        kernel_harness, "compiled", lambda compiler, source, target: compiled(compiler, in_plain_c(source), PLAIN)
    )
    made = products(target)
    for rows in (1, 7, 20)[: 3 if target.amx else 2]:
        for product, got in zip(made, run_products(made, rows, target), strict=True):
            error, scale = np.abs(got - (expected := product.expected(rows))), max(1.0, float(np.abs(expected).max()))
            assert error.max() <= (2e-2 if product.act.kind == "q8" else 2e-5) * scale, (product.kernel, rows)
            assert np.median(error) <= 2e-5 * scale, (product.kernel, rows)


class Compiled(Exception):
    """Instead of a run."""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("target", AWAY, ids=lambda t: t.name)
def test_products_are_compiled(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    def compiled(compiler: CToolchain, source: str, target: Target) -> bytes:
        assert compiler.compile(source, target)[:4] == b"\x7fELF"
        raise Compiled

    monkeypatch.setattr(kernel_harness, "compiled", compiled)
    with pytest.raises(Compiled):
        run_products(products(target), 1, target)
