"""The predictions in docs/targets.md: they are this tree's, and the arithmetic behind them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ferrum.codegen.kernels.linear.small import SmallLinear
from ferrum.codegen.layouts import RowLayout, parse_format
from ferrum.codegen.target import BY_NAME, GpuTarget
from tests.bench import gpu_models, gpu_predict, gpu_prepare, gpu_report
from tests.bench.gpu_predict import Card, Work
from tests.bench.test_gpu import SHAPE

PAGE = Path(__file__).resolve().parents[2] / gpu_predict.PAGE
CARD = Card("a card", "cuda-sm90", 1000, 0.5, 2.0, 1.0)


def test_the_table_is_of_this_tree() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert gpu_predict.stamp_of(page) == gpu_predict.stamp(), "kernels, planner or targets have changed: run make docs"
    rows = [line for line in page.splitlines() if line.startswith(tuple(f"| {name} " for name, _ in gpu_predict.MODELS))]
    assert len(rows) == len(gpu_predict.MODELS) * len(gpu_predict.CARDS)
    assert all(card.name in page and card.target in BY_NAME for card in gpu_predict.CARDS)


def test_a_measurement_finds_its_prediction() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert gpu_report.predicted("0.6b", "none", "NVIDIA H200", page) > 500
    assert gpu_report.predicted("8b", "int4-g128", "NVIDIA GeForce RTX 4090", page) > 50
    assert gpu_report.predicted("0.6b", "none", "Fake GPU", page) == gpu_report.predicted("70b", "none", "NVIDIA H200", page) == 0


def test_a_page_takes_the_next_table_in_the_place_of_the_last() -> None:
    page = "before\n<!-- predicted, stamp abc -->\nold\n<!-- predicted ends -->\nafter\n"
    made = gpu_predict.put(page, "new")
    assert made == f"before\n<!-- predicted, stamp {gpu_predict.stamp()} -->\nnew\n<!-- predicted ends -->\nafter\n"
    assert gpu_predict.put(made, "new") == made


def test_a_launch_takes_what_bounds_it() -> None:
    assert gpu_predict.microseconds(Work(1, 5e6, 0), CARD) == pytest.approx(10)  # 5 MB at 500 GB/s
    rate = 1e3 * 4 * 132  # instructions of warps in a microsecond
    assert gpu_predict.microseconds(Work(1, 5e6, 20 * rate), CARD) == pytest.approx(20)
    assert gpu_predict.microseconds(Work(1, 5e6, 20 * rate), Card("a Mac", "metal-m1", 1000, 0.5, 2.0, 0)) == pytest.approx(10)


def test_the_loop_over_chunks_is_counted_as_often_as_it_runs() -> None:
    """Of two loops the one with products; what is around it once for each warp."""
    listing = """
.L_x_1:
        /*0010*/                   LDG.E R1, [R2] ;
        /*0020*/               @P0 BRA `(.L_x_1) ;
.L_x_2:
        /*0030*/                   HMMA.16816.F32.BF16 R4, R4, R8, R4 ;
        /*0040*/                   IADD3 R1, R1, 0x1, RZ ;
        /*0050*/              @!P1 BRA `(.L_x_2) ;
        /*0060*/                   EXIT ;
"""
    assert [b - a for a, b in gpu_predict.loops(listing)] == [2, 3]
    layout = RowLayout(64, 512, parse_format("bf16"))
    kernel = SmallLinear(64, 512, layout, False, False, "", "f32", 1, 1, 2, 4, 3)
    assert gpu_predict.count_instructions(listing, kernel) == 4 * (layout.chunks * 3 + 4 * 2 * 3)


@pytest.mark.slow
def test_a_layer_more_is_a_layer_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What follows from two and three layers is the plan of five; bytes are those of the weights and of keys and values."""
    monkeypatch.setitem(gpu_models.SHAPES, "small", SHAPE | {"num_hidden_layers": 5})
    card, target = Card("a Mac", "metal-m1", 1000, 0.5, 2.0, 0), BY_NAME["metal-m1"]
    assert isinstance(target, GpuTarget)
    found, time = gpu_predict.whole_step("small", "none", card, tmp_path)
    plan = gpu_prepare.plan_of(gpu_models.SHAPES["small"], "none", target, tmp_path / "whole")[2]
    steps = list(gpu_predict.step_of(plan, gpu_predict.CONTEXT, {}))
    assert found.launches == len(steps) and found.nbytes == pytest.approx(sum(step.nbytes for step in steps))
    assert time == pytest.approx(2 * len(steps) + found.nbytes / 5e5)
    weights = sum(tensor.nbytes for tensor in plan.tensors) - 500 * 64 * 2  # a row of the embedding's table is read
    cache = 5 * gpu_predict.CONTEXT * 2 * SHAPE["num_key_value_heads"] * SHAPE["head_dim"] * 2
    assert weights + cache < found.nbytes < 1.1 * (weights + cache)
