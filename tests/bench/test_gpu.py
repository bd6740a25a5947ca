"""The measurement of a GPU on a stand-in for the driver, with emulated kernels of a small shape: every part of it runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ferrum.codegen.layouts import RowLayout, parse_format
from ferrum.codegen.target import BY_NAME, GpuTarget
from ferrum.devices.cuda_driver import Driver, choose_gpu
from ferrum.devices.options import DeviceOptions
from ferrum.pack.programs import build_of
from ferrum.pack.schema import TensorRecord
from tests.bench import gpu_models, gpu_parts, gpu_prepare
from tests.bench.gpu_report import Report
from tests.devices.emulated import emulated_driver

SHAPE = gpu_models.SHAPES["0.6b"] | {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 64, "vocab_size": 500, "tie_word_embeddings": False,
}  # fmt: skip
CONSTANTS = {
    "ROWS": (1, 2), "PREFILL": (9,), "CONTEXTS": (40,), "SEQUENCES": (2,), "ATTENTION_ROWS": (1, 2), "SAMPLED_ROWS": (2,),
    "TIMED_LAUNCHES": 2, "TIMED_STEPS": 1, "SAMPLES": 1, "COMPARED": 18, "PROMPT": 20, "NEW": 5,
}  # fmt: skip


@pytest.mark.parametrize("fmt", ["f32", "bf16", "int8-g64", "int4-g32", "int4a-g64"])
def test_random_weights_fill_a_stored_matrix(fmt: str) -> None:
    layout = RowLayout(100, 320, parse_format(fmt))
    record = TensorRecord(name="w", format=fmt, layout=layout.name, shape=[100, 320], offset=0, nbytes=layout.nbytes)
    raw = np.zeros(layout.nbytes, np.uint8)
    for start, nbytes, piece in gpu_models._pieces(record, np.random.default_rng(0)):
        raw[start : start + nbytes] = np.resize(piece, nbytes)
    w = layout.decode(raw.data)
    assert 0.015 < w.std() < 0.025 and abs(w.mean()) < 0.005


@pytest.mark.timeout(300)
def test_a_model_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cuda.bindings.nvrtc", reason="cuda-bindings is not installed")
    quant = "f32"  # the fewest kernels
    monkeypatch.setitem(gpu_models.SHAPES, "small", SHAPE)
    for name, value in CONSTANTS.items():
        monkeypatch.setattr(gpu_parts, name, value)
    monkeypatch.setattr(gpu_parts, "OPTIONS", DeviceOptions(max_seqs=4, max_tokens=80, max_model_len=256))
    target = BY_NAME["cuda-sm90"]
    assert isinstance(target, GpuTarget)
    folder = gpu_prepare.prepare_model("small", quant, target, tmp_path)
    assert gpu_prepare.prepare_model("small", quant, target, tmp_path) == folder
    pack, report = gpu_models.PreparedPack(folder), Report()
    driver = Driver(emulated_driver(pack, (9, 0)))  # type: ignore[arg-type]
    report.raw["ceilings"] = {"copy_gb_per_s": 1e-6}
    gpu_parts.run_model(report, driver, choose_gpu(driver, target.arch, target.name, "test"), folder, "small", quant)
    found = report.raw[f"small {quant}"]
    assert found["consistency_error"] <= 0.05
    assert {f"step_us decode x{rows}" for rows in (1, 2)} <= set(found)
    read = pack.manifest.weights_bytes - 500 * 64 * 4  # a step takes one row of the embedding's table
    assert build_of(pack.manifest).weight_bytes == pytest.approx(read, rel=0.02)
    share = f"{1e5 * build_of(pack.manifest).weight_bytes / found['step_us decode x1']:.0f} % of reads"
    assert any(share in row for row in report.table if "step on the device" in row[0])
    assert any("attention" in symbol for symbol in found["attention x1 40"])
    assert len(found["kernels sampled x2"]) == 2 and found["step_us sampled x2"] > 0
    assert all(entry["us"] > 0 for entry in found["kernels prefill 9"].values())
    assert found["engine x2"]["decode_tokens_per_s"] > 0 and len(report.table) > 5 and not report.failed
