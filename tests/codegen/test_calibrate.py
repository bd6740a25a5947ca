"""Factors are chosen by what quantizing loses: the same ones wherever they are chosen, and none where nothing is known."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ferrum.codegen import calibrate
from ferrum.codegen.calibration_text import TEXTS
from ferrum.codegen.layouts import RowLayout, TiledLayout
from ferrum.codegen.layouts.formats import F32, parse_format
from ferrum.codegen.layouts.quantize import quantize_groups
from ferrum.codegen.options import CompileOptions
from ferrum.codegen.policy import TargetPolicy
from ferrum.codegen.target import parse_target
from ferrum.devices.host import machine_features
from ferrum.errors import FerrumError
from ferrum.graphs.expressions.quarters import factors_of, letters_of
from ferrum.graphs.interpret import SourceWeights, interpret
from ferrum.graphs.ir import Graph
from ferrum.graphs.passes import rescale
from ferrum.graphs.pipeline import load_graph
from ferrum.graphs.text import print_graph
from ferrum.graphs.weights import open_checkpoint
from ferrum.pack.quality import read_quality
from ferrum.pack.reader import open_pack
from ferrum.text import sample_text
from tests.codegen.folders import LAST_GRAPH_STAGE, compile_folder, kept_pack, traced


def graph_of(folder: Path) -> Graph:
    return load_graph(next(traced(folder).glob(f"*{LAST_GRAPH_STAGE}.txt")))


def texts_of(folder: Path, graph: Graph, calibration: str = "shipped") -> list[list[int]]:
    return calibrate.read_texts(calibration, (folder / "tokenizer.json").read_bytes(), graph, 2048)


def chosen(folder: Path, quant: str = "int4-g32", target: str = "cpu") -> Graph:
    graph, policy = graph_of(folder), TargetPolicy(parse_target(target), quant)
    with closing(open_checkpoint(folder)) as checkpoint:
        return calibrate.calibrate(graph, policy, checkpoint, texts_of(folder, graph))


def digests(folder: Path) -> dict[str, str]:
    """Of the graph with factors, and of what the interpreter, whose sums round, makes of the same text."""
    graph = graph_of(folder)
    ids = np.array(texts_of(folder, graph)[0], np.int32)
    inputs = {"tokens": ids, "positions": np.arange(len(ids), dtype=np.int32), "sample_rows": np.arange(len(ids), dtype=np.int32)}
    with closing(open_checkpoint(folder)) as checkpoint:
        logits = interpret(graph, inputs, SourceWeights(checkpoint), np.float64, wanted=graph.outputs[:1])[graph.outputs[0]]
    return {"factors": _digest(print_graph(chosen(folder)).encode()), "rounded": _digest(logits.tobytes())}


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


MACHINES = {
    "one thread": {"OPENBLAS_NUM_THREADS": "1"},
    "two threads": {"OPENBLAS_NUM_THREADS": "2"},
    "Haswell": {"OPENBLAS_CORETYPE": "Haswell"},
    "SSE": {"OPENBLAS_CORETYPE": "Prescott", "NPY_DISABLE_CPU_FEATURES": "X86_V4 X86_V3 AVX2 FMA3 AVX512F"},
    "SkylakeX": {"OPENBLAS_CORETYPE": "SkylakeX"},
}
AVX512 = {"avx512f", "avx512vl", "avx512bw", "avx512dq"}


def machines() -> list[str]:
    known = set(machine_features())
    needed = {"Haswell": {"avx2", "fma"}, "SkylakeX": AVX512}
    return [name for name in MACHINES if needed.get(name, set()) <= known]


@pytest.mark.slow
def test_factors_are_the_same_on_all_machines(tiny_folder: Path) -> None:
    """What rounds its sums is not, so these settings do what they are for."""
    traced(tiny_folder)
    found = {}
    for name in machines():
        command = [sys.executable, "-c", _PROGRAM, str(tiny_folder)]
        done = subprocess.run(command, env=os.environ | MACHINES[name], check=True, capture_output=True, text=True)
        found[name] = json.loads(done.stdout)
    assert len({each["factors"] for each in found.values()}) == 1, found
    if "avx2" in machine_features():
        assert len({each["rounded"] for each in found.values()}) > 1, "all settings compute alike here"


_PROGRAM = """
import json, sys
from pathlib import Path
from tests.codegen.test_calibrate import digests
print(json.dumps(digests(Path(sys.argv[1]))))
"""


def test_a_pack_says_what_has_factors_and_is_nearer_its_model(tiny_folder: Path) -> None:
    plain = compile_folder(tiny_folder, "int4-g32", prove=True, output=tiny_folder / "plain.fpk", calibrate="none")
    cards = {}
    for name, path in (("plain", plain), ("calibrated", kept_pack(tiny_folder, "int4-g32", prove=True))):
        with open_pack(path, trust=True) as pack:
            card, graph = read_quality(pack), bytes(pack.member("step/graph.txt")).decode()
            assert card is not None
            cards[name] = card
            assert ("factors(" in graph) == (name == "calibrated") == bool(pack.manifest.provenance.calibrated)
            said = pack.manifest.provenance.calibrated
    matrices = 4 * sum(node.op == "paged_attention" for node in graph_of(tiny_folder).nodes)
    assert f"{matrices} matrices have factors" in said or "as nothing gains" in said
    assert cards["calibrated"].kl_mean < cards["plain"].kl_mean
    assert cards["calibrated"].perplexity_unquantized == pytest.approx(cards["plain"].perplexity_unquantized, rel=1e-3)


def test_a_set_of_factors_is_the_one_that_loses_least(tiny_folder: Path) -> None:
    """By the whole matrix that reads the first gated product; the search looks at some of its rows."""
    graph = graph_of(tiny_folder)
    made_by = {name: node.op for name, node in graph.producers().items()}
    group = next(group for group in rescale.find(graph).groups if made_by[group.value] == "linear")
    texts, found = texts_of(tiny_folder, graph), chosen(tiny_folder)
    with closing(open_checkpoint(tiny_folder)) as checkpoint:
        weights = SourceWeights(checkpoint)
        ids = np.concatenate(texts).astype(np.int32)
        starts = [0, *np.cumsum([len(text) for text in texts]).tolist()]
        inputs = {"tokens": ids, "positions": np.concatenate([np.arange(len(text), dtype=np.int32) for text in texts])}
        x = interpret(graph, inputs, weights, np.float64, query_start=starts, wanted=(group.value,))[group.value]
        matrix = weights.get(graph.param(group.readers[0]))
        layout = TiledLayout(*matrix.shape, parse_format("int4-g32"), 16, 1)
        has = weights.get(found.param(group.readers[0]))
    columns = np.median(has / matrix, axis=0)
    sizes = np.abs(x).mean(0)
    candidates = [np.exp2(np.rint(4 * power / 8 * np.log2(sizes)) / 4) for power in range(9)]
    lost = [output_error(x, matrix, factors / np.exp2(np.log2(factors).mean()), layout) for factors in candidates]
    assert output_error(x, matrix, columns, layout) <= 1.1 * min(lost) and min(lost) < 0.9 * lost[0]


def output_error(x: NDArray[Any], matrix: F32, factors: NDArray[Any], layout: TiledLayout) -> float:
    """Mean square of what quantizing does to the product, each weight's error beside its activation's size alone."""
    errors = calibrate._errors(matrix, layout, factors.astype(np.float32))
    return float((errors * np.square(x).sum(0)).sum())


@pytest.mark.parametrize(
    "layout", [RowLayout(24, 80, parse_format("int4-g32")), TiledLayout(24, 80, parse_format("int4s-g32"), 8, 1)]
)
def test_errors_are_those_of_the_quantizer(layout: RowLayout | TiledLayout) -> None:
    random, fmt = np.random.default_rng(0), layout.format
    matrix = random.normal(size=(24, 80)).astype(np.float32)  # groups of the last one are filled with zeros
    letters = letters_of(random.integers(-8, 9, 80).tolist())
    factors = factors_of(letters)
    scaled = np.pad(matrix * factors, ((0, 0), (0, 16)))
    codes, scales, _ = quantize_groups(scaled, fmt)
    values = (codes.astype(np.float32).reshape(24, 3, 32) - 8) * scales.astype(np.float32)[..., None]
    wanted = np.square(values.reshape(24, 96)[:, :80] / factors - matrix).sum(0)
    np.testing.assert_allclose(calibrate._errors(matrix, layout, factors), wanted, rtol=1e-3)


def test_channels_that_heads_share_have_one_factor() -> None:
    group = rescale.Group("x", ("w",), (), outer=2, times=2, inner=3)
    x = np.array([[1.0, 2, 4, 8, 16, 32, -1, -1, -1, 1, 1, 1]])
    size, square = calibrate._sizes(x, group)
    assert (size / size[3]).tolist() == [4.5, 9.0, 18.0, 1.0, 1.0, 1.0] and (square / square[0]).tolist() == (x[0] ** 2).tolist()
    whole = calibrate._quarters(size, 8)
    assert whole == (np.rint(4 * np.log2(size)) - np.floor(np.rint(4 * np.log2(size)).mean())).astype(int).tolist()
    assert calibrate._quarters(size, 0) == [0] * 6
    assert group.spread([1, 2, 3, 4, 5, 6]) == [1, 2, 3, 1, 2, 3, 4, 5, 6, 4, 5, 6]


def test_a_model_without_a_tokenizer_stays_as_it_is(qwen3_folder: Path) -> None:
    graph = graph_of(qwen3_folder)
    assert calibrate.read_texts("shipped", b"", graph, 128) == []
    with open_pack(kept_pack(qwen3_folder, "int4-g32", prove=True), trust=True) as pack:
        said = pack.manifest.provenance.calibrated
    assert said == "0 matrices have factors; 8 without, as the model has no tokenizer for the texts"


def test_an_op_without_exact_arithmetic_is_named(tiny_folder: Path) -> None:
    graph = graph_of(tiny_folder)
    at = next(number for number, node in enumerate(graph.nodes) if node.op == "rms_norm")
    tanh = replace(graph.nodes[at], op="erf", inputs=graph.nodes[at].inputs[:1], attrs={})
    others = [replace(node, attrs={**node.attrs, "activation": "gelu_mul"}) if node.attrs.get("activation") else node
              for node in graph.nodes]  # fmt: skip
    count = len(rescale.find(graph).groups)
    for nodes, op in (([*graph.nodes[:at], tanh, *graph.nodes[at + 1 :]], "erf"), (others, "linear with gelu")):
        changed = graph.with_nodes(nodes)
        with closing(open_checkpoint(tiny_folder)) as checkpoint:
            policy = TargetPolicy(parse_target("cpu"), "int4-g32")
            same = calibrate.calibrate(changed, policy, checkpoint, texts_of(tiny_folder, graph))
        assert same == changed
        assert f"without, as {op} has no exact arithmetic" in calibrate.calibrated(changed, True)
        assert count - 1 <= len(rescale.find(changed).groups) <= count


@pytest.mark.parametrize("quant", ["keep", "none", "f32", "fp8"])
def test_nothing_is_calibrated_that_is_not_quantized(quant: str) -> None:
    assert CompileOptions("m", quant=quant).calibration == "none"
    with pytest.raises(FerrumError, match="there is nothing to calibrate"):
        CompileOptions("m", quant=quant, calibrate="shipped")


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe", b" \n"])
def test_a_file_that_is_no_text_is_told(tiny_folder: Path, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FerrumError) as told:
        texts_of(tiny_folder, graph_of(tiny_folder), str(path))
    assert told.value.code == "text-unreadable" and told.value.where == str(path)


def test_a_file_is_read_in_pieces_from_its_start_to_its_end(tiny_folder: Path, tmp_path: Path) -> None:
    path, graph = tmp_path / "text.txt", graph_of(tiny_folder)
    path.write_text("How much is 3 plus 4? " * 2000)
    pieces = texts_of(tiny_folder, graph, str(path))
    assert 8 <= len(pieces) <= 16 and all(1 < len(piece) <= 129 for piece in pieces)


def test_the_texts_are_not_those_of_the_card() -> None:
    """No six words in a row are in both."""

    def runs(text: str) -> set[tuple[str, ...]]:
        words = text.split()
        return {tuple(words[at : at + 6]) for at in range(len(words) - 5)}

    shipped, judged = (set[tuple[str, ...]]().union(*map(runs, texts)) for texts in (TEXTS, sample_text.TEXTS))
    assert len(shipped) > 500 and not shipped & judged
