"""The committed weights answer: the same path as the gate, on a sample of the 500 questions."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors import safe_open

from ferrum.graphs.tiny import evaluate
from ferrum.graphs.tiny.chat import MODEL_FOLDER
from ferrum.graphs.tiny.questions import questions

WEIGHTS = MODEL_FOLDER / "model.safetensors"
SAMPLE = {
    "sum": 10,
    "difference": 10,
    "copy": 5,
    "reverse": 5,
    "sort": 7,
    "fact": 5,
    "recall": 6,
    "json": 5,
    "tool": 5,
    "tool_answer": 2,
}


def test_weights_are_small_and_bf16() -> None:
    assert WEIGHTS.stat().st_size < 12_000_000
    with safe_open(WEIGHTS, "pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}  # noqa: SIM118 - not a mapping


def test_a_sample_is_answered(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = questions(SAMPLE)
    assert len(asked) == 60
    monkeypatch.setattr(evaluate, "questions", lambda: asked)
    assert evaluate.main([str(MODEL_FOLDER), "--wrong", "--at-least", "90"]) == 0, capsys.readouterr().out
    table = capsys.readouterr().out
    assert table.splitlines()[-1].split()[:2] == ["total", "60"]
    monkeypatch.setattr(evaluate, "questions", lambda: asked[:2])
    assert evaluate.main([str(MODEL_FOLDER), "--json", "--at-least", "100.1"]) == 1


def test_wrong_weights_do_not_pass(tmp_path: Path) -> None:
    from ferrum.graphs.tiny.training.export import export
    from ferrum.graphs.tiny.training.train import Run

    export(Run(tmp_path).averaged(), tmp_path / "untrained")
    table = evaluate.evaluate(tmp_path / "untrained", questions({"fact": 3}))
    assert table["total"] == (0, 3)
