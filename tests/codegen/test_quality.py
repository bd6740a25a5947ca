"""What small numbers cost the built-in model: divergence from bfloat16 for each token, known answers, and what the card says."""

from __future__ import annotations

from contextlib import closing
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from numpy.typing import NDArray

from ferrum import LLM
from ferrum.cli.quality import quality_note
from ferrum.codegen.layouts import base
from ferrum.codegen.layouts.formats import Format
from ferrum.codegen.layouts.quantize import Quantized, quantize_groups
from ferrum.codegen.prove import runs_here
from ferrum.codegen.target import TARGETS
from ferrum.codegen.toolchains.cxx import CToolchain
from ferrum.devices.host import machine_arch
from ferrum.graphs.interpret import SourceWeights, reference_logits
from ferrum.graphs.pipeline import load_graph
from ferrum.graphs.tiny.chat import MODEL_FOLDER, Chat
from ferrum.graphs.tiny.evaluate import pack_answers
from ferrum.graphs.tiny.questions import accuracy, questions
from ferrum.graphs.weights import open_checkpoint
from ferrum.pack.quality import QualityCard, is_quantized, read_quality
from ferrum.pack.reader import open_pack
from ferrum.text.sample_text import sample_tokens
from ferrum.text.tokenizer import Tokenizer
from tests.codegen.folders import LAST_GRAPH_STAGE, compile_folder, kept_pack, traced

# Nats for each token; int8 is weights and activations together.
LIMITS = {("int8", ""): 0.01, ("none", "int8"): 0.01, ("int4-g32", ""): 0.05}


@cache
def texts() -> list[list[int]]:
    """Every eighth question with its answer, as tokens."""
    chat = Chat(tokenizers.Tokenizer.from_file(str(MODEL_FOLDER / "tokenizer.json")))
    rendered = [chat.render(p.messages, p.tools, add_generation_prompt=True) + p.answer for p in questions()[::8]]
    return [chat.encode(text) for text in rendered]


def log_probabilities(pack: Path) -> NDArray[np.float64]:
    with LLM(pack, prefix_cache=False) as llm:
        logits = np.concatenate([llm.logits(tokens) for tokens in texts()]).astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def proved(folder: Path, quant: str, kv_dtype: str = "") -> Path:
    return kept_pack(folder, quant, kv_dtype=kv_dtype, prove=True)


def card_of(path: Path) -> QualityCard:
    with open_pack(path, trust=True) as pack:
        card = read_quality(pack)
    assert card is not None
    return card


@pytest.fixture(scope="module")
def expected(tiny_folder: Path) -> NDArray[np.float64]:
    return log_probabilities(kept_pack(tiny_folder, "none"))


@pytest.mark.parametrize(
    ("quant", "kv_dtype"), [pytest.param(*case, marks=pytest.mark.slow if case[1] else ()) for case in LIMITS]
)
def test_divergence_from_bfloat16(tiny_folder: Path, expected: NDArray[np.float64], quant: str, kv_dtype: str) -> None:
    got = log_probabilities(proved(tiny_folder, quant, kv_dtype))
    divergence = float((np.exp(expected) * (expected - got)).sum(-1).mean())
    print(f"{quant} {kv_dtype}: {divergence:.5f} nats for each of {len(expected)} tokens")
    assert 0 <= divergence <= LIMITS[quant, kv_dtype]


def test_a_card_is_what_the_pack_answers_beside_the_checkpoint(tiny_folder: Path) -> None:
    """By the engine, text by text, and by the interpreter on the checkpoint's own numbers."""
    path = proved(tiny_folder, "int8")
    ids = sample_tokens(Tokenizer((tiny_folder / "tokenizer.json").read_bytes()), 1 << 20, 32)
    graph = load_graph(next(traced(tiny_folder).glob(f"*{LAST_GRAPH_STAGE}.txt")))
    with closing(open_checkpoint(tiny_folder)) as checkpoint, LLM(path, prefix_cache=False) as llm:
        sides = [reference_logits(graph, text[:-1], SourceWeights(checkpoint)) for text in ids], [llm.logits(t[:-1]) for t in ids]
    right, found = (np.concatenate(side).astype(np.float64) for side in sides)
    p, q = (x - np.logaddexp.reduce(x, -1, keepdims=True) for x in (right, found))
    divergence, card = (np.exp(p) * (p - q)).sum(-1), card_of(path)
    nexts = np.arange(len(p)), np.concatenate([text[1:] for text in ids])
    assert card.measured == "code" and card.positions == len(p) == 128 and not card.bad
    assert card.kl_mean == pytest.approx(divergence.mean(), rel=0.01)
    assert card.kl_p99 == pytest.approx(np.quantile(divergence, 0.99), rel=0.01)
    assert card.top1 == pytest.approx((right.argmax(-1) == found.argmax(-1)).mean(), abs=0.01)
    assert card.perplexity_unquantized == pytest.approx(np.exp(-p[nexts].mean()), rel=1e-3)
    assert card.perplexity == pytest.approx(np.exp(-q[nexts].mean()), rel=1e-3)


def test_fewer_bits_lose_more_and_whole_numbers_have_no_card(tiny_folder: Path) -> None:
    int8, int4 = (card_of(proved(tiny_folder, quant)) for quant in ("int8", "int4-g32"))
    assert int8.kl_mean < int4.kl_mean / 4 and int8.top1 > int4.top1
    assert int8.perplexity_unquantized == int4.perplexity_unquantized
    with open_pack(kept_pack(tiny_folder, "none"), trust=True) as pack:
        assert read_quality(pack) is None and not is_quantized(pack.manifest)


def test_disturbed_scales_pass_the_proof_and_are_bad(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter's answers are of the weights that the pack stores; only the card looks at those of the checkpoint."""
    with open_pack(proved(tiny_folder, "int8"), trust=True) as pack:
        code = bytes(pack.member("code/step.so"))

    def disturbed(w: NDArray[np.float32], fmt: Format) -> Quantized:
        codes, scales, offsets = quantize_groups(w, fmt)
        return codes, (scales * np.where(np.arange(scales.shape[0]) % 2, 1.5, 0.5)[:, None]).astype(scales.dtype), offsets

    monkeypatch.setattr(base, "quantize_groups", disturbed)
    monkeypatch.setattr(CToolchain, "compile", lambda *arguments: code)  # the same source, so the same code
    path = compile_folder(tiny_folder, "int8", prove=True, output=tmp_path / "bad.fpk")
    assert card_of(path).bad
    assert "bad: more than KL" in quality_note(path) and "\n" not in quality_note(path)
    assert "bad" not in quality_note(proved(tiny_folder, "int8"))


def test_a_pack_for_another_machine_has_the_card_of_its_weights(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it can run here; what its activations lose is not in the card, and that is said."""
    other = "cpu-x86_64" if machine_arch() == "aarch64" else "cpu-arm64"
    monkeypatch.setattr(CToolchain, "compile", lambda *arguments: b"")
    bare = compile_folder(tiny_folder, "int8", target=other, output=tmp_path / "bare.fpk")
    assert "not measured, as the pack was not proved" in quality_note(bare) and quality_note(kept_pack(tiny_folder, "none")) == ""
    path = compile_folder(tiny_folder, "int8", target=other, prove=True, output=tmp_path / "x.fpk")
    card = card_of(path)
    assert card.measured == "weights" and card.positions == 128
    assert 0 < card.kl_mean <= card_of(proved(tiny_folder, "int8")).kl_mean
    assert "of the weights alone" in quality_note(path)


@pytest.mark.slow
@pytest.mark.parametrize("quant", ["none", "int8", "int4-g32", "int4a-g32"])
def test_kernels_of_all_targets_answer_alike(tiny_folder: Path, quant: str) -> None:
    """Every set of instructions that this machine has gives the answers of the plainest one."""
    here = [t.name for t in TARGETS if runs_here(t.arch, t.requires)]
    problems = questions()[::20]
    answers = {name: pack_answers(kept_pack(tiny_folder, quant, target=name), problems) for name in here}
    for name in here:
        assert answers[name] == answers[here[-1]], name


@pytest.mark.slow
def test_answers_that_int8_loses(tiny_folder: Path) -> None:
    """At most one per cent of the known answers."""
    problems = questions()[::2]
    right = {}
    for quant, kv_dtype in (("none", ""), ("int8", ""), ("int8", "int8")):
        table, _ = accuracy(problems, pack_answers(kept_pack(tiny_folder, quant, kv_dtype=kv_dtype), problems))
        right[quant, kv_dtype] = table["total"][0] / table["total"][1]
    assert right["none", ""] >= 0.98
    assert min(right.values()) >= right["none", ""] - 0.01, right
