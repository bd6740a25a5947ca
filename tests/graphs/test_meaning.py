"""Passes keep the meaning of graphs that no model would write: edited golden graphs compute the same after each stage."""

from __future__ import annotations

import random
import re
import zlib

import numpy as np
import pytest

from ferrum.errors import FerrumError
from ferrum.graphs.interpret import Array, ArrayWeights, interpret, reference_logits
from ferrum.graphs.ir import Graph
from ferrum.graphs.pipeline import STAGE_NAMES, run_pipeline
from ferrum.graphs.text import parse_graph
from ferrum.graphs.verify import verify
from tests.graphs.conftest import GOLDENS

FILES = sorted((GOLDENS / "stages").glob("*.txt"))[:6]
NUMBERS = ("0", "1", "2", "3", "0.5", "2.0", "1.0", "16", "1e-06")
TOKENS = np.array([[1, 5, 7, 2, 9], [3, 3, 8, 1, 0]])


def edited(text: str, chance: random.Random) -> str:
    """``text`` with one to three attributes or inputs changed."""
    lines = text.splitlines()
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(lines))
        head, sign, tail = lines[at].partition(" = ")
        if not sign:
            continue
        numbers = list(re.finditer(r"(?<==)\d+(\.\d+)?(e-\d+)?", tail))
        names = list(re.finditer(r"(?<=[( ])[a-z_]+(\.\d+)?(?=[,)])", tail))
        earlier = re.findall(r"^[a-z_]+(?:\.\d+)?(?=:)", "\n".join(lines[:at]), re.MULTILINE)
        found, choices = (numbers, NUMBERS) if chance.random() < 0.5 else (names, tuple(earlier))
        if found and choices:
            spot = chance.choice(found)
            lines[at] = f"{head} = {tail[: spot.start()]}{chance.choice(choices)}{tail[spot.end() :]}"
    return "\n".join(lines) + "\n"


def weights_of(graph: Graph) -> ArrayWeights:
    def array(name: str, shape: tuple[int, ...]) -> Array:
        return np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape) * 0.5

    return ArrayWeights({p.name: array(p.name, p.value.shape) for p in graph.params if p.weight})  # type: ignore[arg-type]


def logits_of(graph: Graph, weights: ArrayWeights) -> Array:
    if graph.inputs[0].shape == ("batch", "seq"):
        return interpret(graph, {"tokens": TOKENS}, weights, np.float64)[graph.outputs[0]]
    return np.stack([reference_logits(graph, row.tolist(), weights, np.float64) for row in TOKENS])


@pytest.mark.parametrize("start", [1, *(pytest.param(i, marks=pytest.mark.slow) for i in range(len(FILES)) if i != 1)])
def test_edited_graphs_keep_their_meaning(start: int) -> None:
    chance = random.Random(start)
    text = FILES[start].read_text(encoding="utf-8")
    same = 0
    for _ in range(150):
        try:
            graph = verify(parse_graph(edited(text, chance)))
        except FerrumError:
            continue
        weights = weights_of(graph)
        with np.errstate(all="ignore"):
            want = logits_of(graph, weights)
            if not np.isfinite(want).all():
                continue
            after = graph
            for stage in STAGE_NAMES[start + 1 :]:
                before = after
                try:
                    after = run_pipeline(before, start_from=stage, stop_after=stage)
                except FerrumError as error:
                    assert error.code == "unsupported-ops"
                    break
                if after != before:
                    got = logits_of(after, weights)
                    assert np.abs(got - want).max() <= 1e-6 * np.abs(want).max(), stage
            else:
                same += 1
    assert same > 15
