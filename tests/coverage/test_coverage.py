"""The trials of types end whatever a type does, resume where they stopped, and the page says what came of them."""

from __future__ import annotations

import os
import re
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from tests.coverage.outcomes import DIFFERS, FAULT, MEANINGS, MISSING, RUNS, Outcome, append, latest, load
from tests.coverage.page import page, reasons
from tests.coverage.run import ENCODES, MODELS, Table, Trials


def behave(kind: str, to: Connection) -> None:
    if kind == "dies":
        os.kill(os.getpid(), 11)
    if kind == "hangs":
        time.sleep(60)
    to.send(Outcome(kind, RUNS, ("1e-6",)))


def test_a_crash_and_a_lack_of_an_end_are_outcomes() -> None:
    found = {o.kind: o for o in Trials(2, 5.0, behave, ()).run(["fine", "dies", "hangs", "good"])}
    assert {kind: o.result for kind, o in found.items()} == {"fine": RUNS, "dies": FAULT, "hangs": FAULT, "good": RUNS}
    assert "status -11" in found["dies"].details[0] and "no end within 5" in found["hangs"].details[0]


def test_outcomes_are_kept_and_the_last_one_counts(tmp_path: Path) -> None:
    path = tmp_path / "a" / "outcomes.jsonl"
    first = Outcome("a", FAULT, ("what",), "5", "t1", 1.5)
    for outcome in (first, Outcome("b", RUNS, (), "4", "t1"), replace(first, result=RUNS, tree="t2")):
        append(path, outcome)
    with path.open("a") as file:
        file.write('{"kind": "c", "resu')
    assert load(path)[0] == first and len(load(path)) == 3
    assert latest(load(path), "5") == {"a": replace(first, result=RUNS, tree="t2")}


def test_the_page_counts_and_gives_reasons() -> None:
    outcomes = [
        Outcome("a", RUNS, ("1e-06",), tree="t"),
        Outcome("b", MISSING, ("topk, which nothing has (2 times) in x.y m.py:3", "more | of it"), tree="t"),
        Outcome("c", MISSING, ("topk, which nothing has in x.z m.py:9",), tree="u"),
        Outcome("d", DIFFERS, ("a" * 500,), tree="t"),
    ]
    text = page(["a", "b", "c", "d", "e"], {o.kind: o for o in outcomes}, "5.0")
    assert "1 of 5 types run" in text and "| not tried | 1 | |" in text and "`t` (3 types), `u` (1 types)" in text
    assert "`a` 1e-06." in text and "more \\| of it" in text and "a …" in text
    assert reasons(outcomes) == [("topk, which nothing has", 2)]


@pytest.mark.parametrize("table", [MODELS, ENCODES], ids=["models", "encoders"])
def test_the_page_has_every_type_once_and_no_fault(table: Table) -> None:
    text = table.page.read_text(encoding="utf-8")
    parts = dict(re.findall(r"(?ms)^## ([A-Z][\w ]+)\n(.*?)(?=^## |\Z)", text))
    listed = parts["Types that run"] + parts.get("Not tried yet", "")
    told = re.findall(r"`([\w-]+)`", listed) + re.findall(r"(?m)^\| `([\w-]+)` \|", text)
    assert sorted(told) == table.types()
    assert not {result.capitalize() for result in (FAULT, DIFFERS)} & set(parts) and set(MEANINGS) >= {RUNS, MISSING}


@pytest.mark.parametrize("kind", ["gemma2", "glm4_moe", "deepseek_v3", "gpt_neox"])
def test_a_tiny_configuration_has_each_kind_of_layer(kind: str) -> None:
    from tests.coverage.shrink import VOCAB, WIDTH, tiny_config

    config = tiny_config(kind)
    assert (config.vocab_size, config.hidden_size) == (VOCAB, WIDTH) and 2 <= config.num_hidden_layers <= 4
    if kind == "gemma2":
        assert sorted(config.layer_types) == ["full_attention", "sliding_attention"] and config.sliding_window == 16
