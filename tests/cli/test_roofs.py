"""What was measured of the machine: what is kept, what bounds a step, with tiles and without."""

from __future__ import annotations

import argparse
from pathlib import Path
from types import SimpleNamespace

import pytest
from msgspec.structs import replace

from ferrum.cli import bench, explain
from ferrum.cli.doctor import measured
from ferrum.cli.machine import ROOF_UNITS, known_roofs, roofs_with
from ferrum.devices.cpu import CpuExecutor
from ferrum.pack.schema import KernelRecord
from tests.pack.helpers import minimal_manifest

PLAIN = {"read_gb_per_s": 30.0, "f32_tflops": 0.3, "bf16_tflops": 0.2, "int8_tops": 1.3}
TILES = {"bf16_tile_tflops": 1.8, "int8_tile_tops": 3.0}


class Rates:
    """The entry points of a pack's code, of which only code with tiles has the last."""

    def __init__(self, tiles: bool) -> None:
        if tiles:
            self.ferrum_roof_tile = lambda _, kind, rounds: (1.8e12, 3.0e12)[kind] if rounds else 0.0

    def ferrum_roof_read(self, handle: object, data: int, nbytes: int) -> float:
        return 30e9

    def ferrum_roof_dot(self, handle: object, kind: int) -> float:
        return (0.3e12, 0.2e12, 1.3e12)[kind]


@pytest.mark.parametrize("tiles", [False, True])
def test_code_with_tiles_measures_them(tiles: bool) -> None:
    executor = SimpleNamespace(_library=SimpleNamespace(lib=Rates(tiles)), _handle=None)
    found = CpuExecutor.measure_roofs(executor)  # type: ignore[arg-type]
    assert found == pytest.approx(PLAIN | (TILES if tiles else {}))
    assert set(found) <= set(ROOF_UNITS)


def test_other_code_keeps_what_was_measured_of_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FERRUM_CACHE", str(tmp_path))
    assert roofs_with(SimpleNamespace(measure_roofs=lambda: PLAIN | TILES)) == known_roofs() == PLAIN | TILES
    again = PLAIN | {"int8_tops": 1.4}
    assert roofs_with(SimpleNamespace(measure_roofs=lambda: again)) == again  # what bounds the code that ran
    assert known_roofs() == again | TILES
    assert [finding.detail for finding in measured()][-2:] == ["1.80 TFLOP/s bf16 in tiles", "3.00 TOP/s int8 in tiles"]


@pytest.mark.parametrize(
    ("quant", "rates"), [("f32", (0.3, 0.3)), ("none", (0.3, 1.8)), ("int8", (1.3, 3.0)), ("int4-g32", (1.3, 3.0))]
)
def test_a_prompt_is_bound_by_the_best_rate(quant: str, rates: tuple[float, float]) -> None:
    manifest = minimal_manifest()
    build = manifest.code[0].programs["step"]
    heavy = [replace(kernel, flops_per_token=10**9, bytes_per_token=0) for kernel in build.kernels[:1]]
    code = replace(manifest.code[0], programs={"step": replace(build, kernels=heavy)})
    manifest = replace(manifest, code=[code], model=replace(manifest.model, quant=quant))
    args = argparse.Namespace(prompt_tokens=8, max_tokens=2, concurrency=1)
    for roofs, rate in zip((PLAIN, PLAIN | TILES), rates, strict=True):
        assert bench.limits(roofs, manifest, args)[1] == pytest.approx(rate * 1e12 / 1e9)


def test_one_token_is_bound_by_tiles_where_they_take_it() -> None:
    kernel = KernelRecord(
        symbol="linear_1", spec="linear", params={}, why="", calls=1, weight_bytes=0, flops_per_token=10**9, bytes_per_token=0
    )
    seconds = {
        amx_rows: explain._seconds(replace(kernel, params={"amx_rows": amx_rows}), PLAIN | TILES)[0] for amx_rows in (1, 8)
    }
    assert seconds == pytest.approx({1: 1e9 / 1.8e12, 8: 1e9 / 0.3e12})
    assert explain._seconds(replace(kernel, params={"amx_rows": 1}), PLAIN)[0] == pytest.approx(1e9 / 0.3e12)
