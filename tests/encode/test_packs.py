"""Packs of models that embed: their rows are those of `transformers` and a pooling, and the same bits in any company."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferrum import LLM
from ferrum.codegen.driver import check_model, compile_model
from ferrum.codegen.options import CompileOptions
from ferrum.engine.encoder import shortened
from ferrum.errors import FerrumError
from ferrum.pack.reader import open_pack, read_manifest
from ferrum.pack.selftest import read_selftest
from tests.codegen.test_generic_kernels import draw_settings
from tests.conftest import RUN_FOLDER, CommandLine
from tests.encode.folders import LONGEST, VOCAB, Embedder, embedder, write
from tests.once import once

TINY_TOKENIZER = Path(__file__).parents[2] / "graphs" / "tiny" / "model" / "tokenizer.json"
HOWS = {"roberta": "first", "distilbert": "max", "qwen3": "last", "gemma2": "mean_sqrt_len", "modernbert": "weighted_mean"}
SLOW = ("roberta", "xlm-roberta", "distilbert", "modernbert", "qwen3", "gemma2")
KINDS = ["bert", *(pytest.param(kind, marks=pytest.mark.slow) for kind in SLOW)]


@cache
def folder_of(kind: str) -> Embedder:
    return embedder(kind, RUN_FOLDER / f"embeds-{kind}-{os.getpid()}", HOWS.get(kind, "mean"), normalize=kind != "distilbert")


@cache
def pack_of(kind: str) -> Path:
    folder = folder_of(kind).folder
    return once(
        folder / "f32.fpk", lambda part: compile_model(CompileOptions(str(folder), quant="f32", output=part, name=f"tiny-{kind}"))
    )


def ids(length: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(2, VOCAB, length).tolist()


@pytest.fixture(scope="module", params=KINDS)
def loaded(request: pytest.FixtureRequest) -> Iterator[tuple[str, LLM]]:
    with LLM(pack_of(request.param), num_threads=2, max_num_seqs=5) as llm:
        yield request.param, llm


def test_rows_are_those_of_transformers(loaded: tuple[str, LLM]) -> None:
    kind, llm = loaded
    texts = [ids(length, length) for length in (1, 2, 9, 17, 33, LONGEST[kind])]
    wanted = np.array([folder_of(kind).of(text) for text in texts])
    found = llm.embed(texts)
    assert found.dtype == np.float32 and found.shape == (len(texts), 32)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())


def test_bits_do_not_depend_on_the_batch(loaded: tuple[str, LLM]) -> None:
    kind, llm = loaded

    @draw_settings(8)
    @given(lengths=st.lists(st.integers(1, LONGEST[kind]), min_size=1, max_size=9), seed=st.integers(0, 999))
    def same(lengths: list[int], seed: int) -> None:
        texts = [ids(length, seed + number) for number, length in enumerate(lengths)]
        together = llm.embed(texts)
        alone = np.concatenate([llm.embed([text]) for text in texts])
        np.testing.assert_array_equal(together, alone)

    same()


def test_a_text_enters_whole_or_not_at_all(loaded: tuple[str, LLM]) -> None:
    kind, llm = loaded
    with pytest.raises(FerrumError, match=f"the text has {LONGEST[kind] + 1} tokens; this model embeds up to {LONGEST[kind]}"):
        llm.embed([ids(3, 0), ids(LONGEST[kind] + 1, 0)])
    assert llm.embed([ids(3, 0)]).shape == (1, 32)


def test_a_pack_says_what_it_is(loaded: tuple[str, LLM]) -> None:
    kind, llm = loaded
    manifest = read_manifest(pack_of(kind))
    (program,) = manifest.programs
    assert (program.name, program.whole, program.states, manifest.states) == ("encode", True, [], [])
    assert manifest.endpoints == ["embeddings"] and program.outputs[0].width == llm.info.embedding_width == 32
    with open_pack(pack_of(kind), trust=True) as pack:
        assert all(len(case.top_tokens) == 16 and not case.greedy for case in read_selftest(pack).cases)


def test_fewer_dimensions() -> None:
    with LLM(pack_of("bert")) as llm:
        whole = llm.embed([ids(5, 1), ids(9, 2)])
        short = llm.embed([ids(5, 1), ids(9, 2)], dimensions=7)
        wanted = whole[:, :7] / np.linalg.norm(whole[:, :7], axis=1, keepdims=True)
        np.testing.assert_allclose(short, wanted, rtol=1e-6)
        for dimensions in (33, -1):
            with pytest.raises(FerrumError, match=f"have 32 numbers, not {dimensions}"):
                llm.embed([ids(5, 1)], dimensions=dimensions)
    assert (shortened(np.zeros(4, np.float32), 2) == 0).all()


def test_what_cannot_run_is_said() -> None:
    with LLM(pack_of("bert")) as llm:
        for refused in (lambda: llm.generate([[3, 4]]), lambda: llm.logits([3, 4])):
            with pytest.raises(FerrumError, match="no program 'step', only encode") as error:
                refused()
            assert error.value.code == "pack-program"
        for text, code in (([], "prompt-empty"), ([VOCAB], "invalid-token"), ([-1], "invalid-token"), (["x"], "invalid-token")):
            with pytest.raises(FerrumError) as error:
                llm.embed([text])  # type: ignore[list-item]
            assert error.value.code == code
        with pytest.raises(FerrumError, match="has no tokenizer"):
            llm.embed("text")


def test_a_model_that_generates_does_not_embed(tiny_pack: Path) -> None:
    with LLM(tiny_pack) as llm, pytest.raises(FerrumError, match="no program 'encode', only step"):
        llm.embed("text")


@pytest.mark.slow
def test_a_model_that_embeds_can_be_checked() -> None:
    folder = str(folder_of("bert").folder)
    assert check_model(CompileOptions(folder)) == check_model(CompileOptions(folder, target="cuda-sm89")) == ()


@pytest.mark.slow
def test_rounded_weights_stay_near() -> None:
    """In int8, which has no quality card here: it is of models that predict tokens."""
    made = folder_of("bert")
    pack = compile_model(CompileOptions(str(made.folder), quant="int8", output=made.folder / "int8.fpk"))
    with LLM(pack) as llm:
        assert float(llm.embed([ids(20, 3)])[0] @ made.of(ids(20, 3))) > 0.99


def with_text(folder: Path) -> Path:
    """A folder whose tokenizer is that of the built-in model, cut to what the vocabulary has."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {chr(97 + i): i for i in range(26)} | {"[UNK]": 26}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.slow
def test_texts_on_the_command_line(ferrum: CommandLine, tmp_path: Path) -> None:
    made = embedder("bert", tmp_path / "model", max_seq_length=4)
    write(with_text(made.folder) / "config_sentence_transformers.json", {"prompts": {"ask": "q "}, "default_prompt_name": None})
    done = ferrum("compile", "model", "--quant", "f32", "-o", "x.fpk")
    assert done.returncode == 0, done.stderr
    done = ferrum("embed", "x.fpk", "-t", "a b", "-t", "c")
    assert done.returncode == 0, done.stderr
    wanted = np.array([made.of([0, 1]), made.of([2])])
    np.testing.assert_allclose(json.loads(done.stdout), wanted, atol=1e-4)
    raw = ferrum("embed", "x.fpk", "-f", "csv", "--prompt-name", "ask", "--dimensions", "8", stdin="a b\n")
    row = made.of([16, 0, 1])[:8]
    np.testing.assert_allclose([float(n) for n in raw.stdout.split(",")], row / np.linalg.norm(row), atol=1e-4)
    for arguments, told in (
        (("-t", "a b c d e"), "the text has 5 tokens; this model embeds up to 4"),
        (("-t", "a", "--prompt-name", "no"), "no prompt 'no', only ask"),
        (("-t", "a", "--dimensions", "99"), "have 32 numbers, not 99"),
    ):
        refused = ferrum("embed", "x.fpk", *arguments)
        assert refused.returncode == 1 and told in refused.stderr and refused.stderr.count("\n") == 1
    assert "no program 'step', only encode" in ferrum("run", "x.fpk", "--prompt", "a").stderr
    for verb in (("explain", "x.fpk"), ("explain", "x.fpk", "--why"), ("verify", "x.fpk", "--numeric"), ("list",)):
        done = ferrum(*verb)
        assert done.returncode == 0, (verb, done.stdout, done.stderr)
