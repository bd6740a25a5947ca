"""The training script: a stopped run goes on where it was, and a checkpoint becomes a loadable folder."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
import torch

from ferrum.graphs.tiny.evaluate_torch import load_model
from ferrum.graphs.tiny.training import export as exporting
from ferrum.graphs.tiny.training import train
from ferrum.graphs.tiny.training.export import export


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "TOKENS_PER_STEP", 256)
    monkeypatch.setattr(train, "POOL", 2)
    monkeypatch.setattr(train, "SAMPLE", {"sum": 1})
    monkeypatch.setattr(train, "REPORT_EVERY", 3)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 32}
    monkeypatch.setattr(exporting, "SHAPE", exporting.SHAPE | sizes)


def test_a_resumed_run_has_the_same_state(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = train.Run(tmp_path)
    train.train(first, steps=3, checkpoint_every=100)
    assert "sum " in capsys.readouterr().out
    second = train.Run(tmp_path)
    second.load()
    assert second.step == 3
    for run in (first, second):
        train.train(run, steps=4, checkpoint_every=100)
    for (name, a), b in zip(first.model.named_parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b), name
        assert torch.equal(first.average[name], second.average[name])


def test_an_exported_folder_gives_the_same_logits(tmp_path: Path) -> None:
    run = train.Run(tmp_path)
    export(run.averaged(), tmp_path / "folder")
    tokens = torch.arange(40)[None]
    with torch.inference_mode():
        assert torch.equal(load_model(tmp_path / "folder")(tokens), run.averaged()(tokens))


def test_batches_learn_answers_only() -> None:
    run_chat = train.Chat(train.make_tokenizer())
    data = train.batches(run_chat, Random(1))
    for _ in range(6):
        tokens, targets = next(data)
        assert tokens.shape == targets.shape and tokens.numel() <= 256 or len(tokens) == 1
        learned = targets >= 0
        assert learned.any(dim=1).all() and learned.float().mean() < 0.7
        shifted = targets[:, :-1][learned[:, :-1]]
        assert torch.equal(shifted, tokens[:, 1:][learned[:, :-1]])


def test_the_rate_rises_stays_and_falls_to_zero() -> None:
    rates = [train.rate(step, 1000) for step in range(1001)]
    assert rates[0] < rates[50] < rates[100] == 1.0 == rates[600] and rates[1000] == 0.0
    assert all(a >= b for a, b in zip(rates[600:], rates[601:], strict=False))
