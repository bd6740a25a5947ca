"""Real weights: SmolLM2-135M-Instruct in Q4_1, beside `transformers` on what the format's own package makes of them."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ferrum import LLM, SamplingParams
from ferrum.codegen.driver import check_model, compile_model
from ferrum.codegen.job import open_job
from ferrum.codegen.options import CompileOptions
from ferrum.codegen.stages import trace
from ferrum.graphs.interpret import SourceWeights, interpret
from ferrum.graphs.model_files import open_files
from ferrum.graphs.weights import open_checkpoint
from ferrum.pack.quality import read_quality
from ferrum.pack.reader import open_pack
from ferrum.text.tokenizer import Tokenizer
from tests.gguf.smollm2 import medium, reference, smollm2
from tests.gguf.test_kept import check_weights
from tests.gguf.test_tokenizer import HARD

pytestmark = pytest.mark.slow
PROMPT = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
ANSWER = (
    "The capital of France is Paris. It lies on the river Seine, and more than two million people live there. The city is known "
    "for its museums, of which the Louvre is the largest, for the tower that Gustave Eiffel's company built for the fair of "
    "1889, and for its bread. Trains from the north arrive at the Gare du Nord, those from the south at the Gare de Lyon. In "
    "winter it rains more often than it snows, and in summer many of its inhabitants leave for the coast."
)


@pytest.fixture(scope="module")
def path(run_folder: Path) -> Path:
    return smollm2(run_folder / "smollm2")


@pytest.fixture(scope="module")
def model(path: Path) -> Any:
    return reference(path)


@pytest.fixture(scope="module")
def tokenizer(path: Path) -> Tokenizer:
    return Tokenizer(open_files(path).read("tokenizer.json") or b"")


@cache
def vocabulary(path: Path) -> tuple[dict[str, int], dict[tuple[str, ...], int]]:
    """Ids of tokens and ranks of merges, as the format's own package reads them."""
    import gguf

    fields = gguf.GGUFReader(path).fields
    tokens, merges = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "merges"))
    return {token: n for n, token in enumerate(tokens)}, {tuple(merge.split(" ")): n for n, merge in enumerate(merges)}


def byte_pairs(path: Path, text: str) -> list[int]:
    """The ids of a text by the definition: digits alone, GPT-2's words, then the pair of the lowest rank again and again."""
    import regex
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    ids, ranks = vocabulary(path)
    words = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
    found: list[int] = []
    for part in regex.split(r"(\p{N}|<\|im_start\|>|<\|im_end\|>)", text):
        for word in [part] if part in ids and part.startswith("<|") else words.findall(part):
            parts = [word] if word.startswith("<|im") else [bytes_to_unicode()[byte] for byte in word.encode()]
            while pairs := [(ranks[pair], n) for n, pair in enumerate(zip(parts, parts[1:], strict=False)) if pair in ranks]:
                _, at = min(pairs)
                parts[at : at + 2] = [parts[at] + parts[at + 1]]
            found += [ids[part] for part in parts]
    return found


def test_hard_texts_have_the_tokens_of_the_definition(path: Path, tokenizer: Tokenizer) -> None:
    for text in HARD:
        assert tokenizer.encode(text) == byte_pairs(path, text), text


def test_logits_are_those_of_transformers(path: Path, model: Any, tokenizer: Tokenizer) -> None:
    graph = trace(open_job(CompileOptions(str(path), stop_after="import"), lambda stage, done, total: None))
    ids = tokenizer.encode(PROMPT)
    with closing(open_checkpoint(path)) as checkpoint, torch.no_grad():
        found = interpret(graph, {"tokens": np.array([ids])}, SourceWeights(checkpoint))[graph.outputs[0]]
        wanted = model(input_ids=torch.tensor([ids]), use_cache=False).logits.numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


def test_a_pack_answers_with_the_same_tokens(path: Path, model: Any, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Nothing is lost where the file's blocks meet activations that nobody rounds."""
    options = CompileOptions(str(path), activations="f32", kv_dtype="f32", max_model_len=256, output=tmp_path / "x.fpk")
    assert check_model(options) == ()
    pack = compile_model(options)
    ids = tokenizer.encode(PROMPT)
    with torch.no_grad():
        wanted = model.generate(torch.tensor([ids]), max_new_tokens=64, do_sample=False, eos_token_id=None, pad_token_id=0)
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].numpy()
    with LLM(str(pack), trust=True, max_num_seqs=1) as llm:
        np.testing.assert_allclose(llm.logits(ids), logits, rtol=1e-4, atol=1e-4 * np.abs(logits).max())
        (answer,) = llm.generate([ids], SamplingParams(temperature=0, max_tokens=64, ignore_eos=True))
    assert list(answer.token_ids) == wanted[0, len(ids) :].tolist()


@pytest.mark.parametrize("made", ["as it is", "Q4_K_M"])
def test_its_blocks_are_kept(path: Path, model: Any, tokenizer: Tokenizer, tmp_path: Path, made: str) -> None:
    """Rounding activations to bytes in groups of 32, or 16, is all that is lost. As a Q4_K_M it has Q4_K and Q6_K where rows are
    whole blocks of 256, and Q5_0 and Q8_0 elsewhere; in half of its layers the value's blocks are others than the query's."""
    if made != "as it is":
        path = medium(path, tmp_path / "medium.gguf")
        model = reference(path)
    pack = compile_model(CompileOptions(str(path), max_model_len=256, output=tmp_path / "x.fpk"))
    nbytes, blocks = check_weights(pack, path)
    assert nbytes <= 1.02 * blocks
    ids = tokenizer.encode(PROMPT + ANSWER)
    with torch.no_grad():
        wanted = torch.log_softmax(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0], -1).numpy()
    with LLM(str(pack), trust=True, max_num_seqs=1) as llm:
        found = torch.log_softmax(torch.from_numpy(llm.logits(ids)), -1).numpy()
    places = np.arange(len(ids) - 1), np.array(ids[1:])
    change = float(np.abs(found[places] - wanted[places]).mean())
    print(f"mean change of log probability over {len(ids) - 1} tokens: {change:.4f}; {nbytes / blocks:.4f} of the file's blocks")
    assert change <= (0.061 if made == "as it is" else 0.07)  # where attention rounds to bfloat16 too, 0.0602
    assert (found.argmax(-1) == wanted.argmax(-1)).mean() >= 0.95
    with open_pack(pack, trust=True) as opened:
        card = read_quality(opened)
        assert card is not None and card.kl_mean < 0.01 and not card.bad
        assert "becomes" not in opened.manifest.provenance.blocks
        kinds = "q4_1+q8_0" if made == "as it is" else "q4_k+q6_k+q5_0+q8_0"
        assert set(opened.manifest.model.quant.split("+")) == set(kinds.split("+"))


def test_four_bits_rounded_to_nearest_are_called_bad(path: Path, tmp_path: Path) -> None:
    """One and one is one, and the card says it: neither known answers of random tokens nor the proof can see it. Calibrated, both
    formats are nearer their model."""
    said, base = {}, CompileOptions(str(path), max_model_len=256, dump_dir=tmp_path / "dumps", output=tmp_path / "x.fpk")
    compile_model(replace(base, stop_after="fuse_paged"))
    for quant, calibrate in (("int8", "auto"), ("int4-g32", "none"), ("int4-g32", "auto")):
        asked = replace(base, quant=quant, calibrate=calibrate, start_from="layout")
        with open_pack(compile_model(asked), trust=True) as pack:
            card = read_quality(pack)
            assert card is not None
            said[quant, calibrate] = card
    int8, plain, int4 = said.values()
    assert int8.kl_mean < 0.007 and int8.top1 > 0.93 and not int8.bad
    assert plain.kl_mean > 0.15 and plain.perplexity > 1.1 * plain.perplexity_unquantized and plain.bad
    assert int4.kl_mean < 0.7 * plain.kl_mean and int4.top1 > plain.top1


def test_its_configuration_is_the_model_s(path: Path) -> None:
    config = json.loads(open_files(path).read("config.json") or b"")
    assert config["architectures"] == ["LlamaForCausalLM"] and config["tie_word_embeddings"] and config["rope_theta"] == 100000.0
    assert b"SmolLM" in (open_files(path).read("chat_template.jinja") or b"")
