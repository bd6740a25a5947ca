"""Tiny models of every pattern, traced, as whole packs for GPUs in emulation: greedy tokens and embeddings are the CPU's."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ferrum import LLM, SamplingParams
from ferrum.codegen import backend
from ferrum.codegen.driver import compile_model
from ferrum.codegen.options import CompileOptions
from tests.cli.checkpoint import write_checkpoint
from tests.codegen.emulated_graphs import GPUS
from tests.codegen.folders import kept_pack
from tests.codegen.test_gpu_packs import NoCompiler
from tests.conftest import RUN_FOLDER
from tests.coverage.shrink import LONGEST, VOCAB
from tests.coverage.trial import model_of
from tests.encode import test_packs
from tests.once import once

# A type of each pattern: what it has that others have not.
PATTERNS = {
    "starcoder2": "LayerNorm with bias, plain feed-forward, windows",
    "gemma2": "soft caps, windows by layer, norms on both sides, a scaled embedding",
    "gpt_neox": "parallel residual, rotation of a part",
    "olmo2": "norms behind, of whole queries and keys",
    "phi3": "joined products",
    "gpt2": "learned positions",
    "bloom": "ALiBi",
    "cohere": "pairs that are neighbours, a scaled head",
    "mixtral": "experts by softmax",
    "deepseek_v3": "latent attention, grouped routing by sigmoid, a shared expert",
    "gpt_oss": "sinks, experts with bias",
    "gemma3n_text": "embeddings by layer, shared keys and values",
    "qwen3_next": "gated delta rule, short convolution",
    "mamba2": "a state space",
    "lfm2": "short convolutions",
    "jamba": "a state space among attention and experts",
}
CUDA, METAL = GPUS
FAST = {(CUDA, "phi3")}
SLOW = {(CUDA, "mixtral"), (CUDA, "qwen3_next"), (CUDA, "gpt_oss"), (METAL, "gemma2"), (METAL, "deepseek_v3"), (METAL, "mamba2")}
PARAMS = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)


def case(target: str, kind: str) -> Any:
    marks = () if (target, kind) in FAST else pytest.mark.slow if (target, kind) in SLOW else pytest.mark.sweep
    return pytest.param(target, kind, id=f"{kind}-{target}", marks=marks)


CASES = [case(target, kind) for kind in PATTERNS for target in GPUS]


@cache
def folder_of(kind: str) -> Path:
    return once(RUN_FOLDER / "gpu-traced" / kind, lambda part: model_of(kind, part))


@pytest.fixture(autouse=True)
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Emulation reads the source; machine code has rules of its own (``test_generic_rules.py``)."""
    find = backend.find_gpu_toolchain
    monkeypatch.setattr(backend, "find_gpu_toolchain", lambda target: NoCompiler() if target.device == "cuda" else find(target))
    monkeypatch.setattr(backend, "static_record", lambda code, plan, target: b"")


def tokens_of(kind: str, target: str, device: str) -> list[list[int]]:
    random = np.random.default_rng(5)
    prompts = [random.integers(3, VOCAB, length).tolist() for length in (1, 2, 19, 40)]
    options = {"trust": True, "max_num_seqs": 3, "max_model_len": LONGEST, "max_num_batched_tokens": 32}
    with LLM(str(kept_pack(folder_of(kind), "f32", target)), device=device, **options) as llm:  # type: ignore[arg-type]
        return [list(out.token_ids) for out in llm.generate(prompts, PARAMS)]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("target", "kind"), CASES)
def test_greedy_tokens_are_those_of_the_cpu(target: str, kind: str) -> None:
    """Prompts in chunks, decoding beside them, more sequences than run at once."""
    assert tokens_of(kind, target, "emulate") == tokens_of(kind, "cpu", "cpu")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("target", GPUS)
@pytest.mark.parametrize("kind", [k if k in ("phi3", "mixtral") else pytest.param(k, marks=pytest.mark.sweep) for k in PATTERNS])
def test_every_kernel_of_a_pack_is_proven(kind: str, target: str) -> None:
    """Alone beside its reference, with the sizes of a model, and the whole beside the interpreter; with rounded weights."""
    for quant in ("f32", "int4-g32"):
        assert kept_pack(folder_of(kind), quant, target, prove=True).is_file()


@pytest.mark.slow
@pytest.mark.parametrize("target", GPUS)
def test_a_pack_without_fusing_says_the_same(target: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model")
    options = CompileOptions(str(tmp_path / "model"), quant="f32", output=tmp_path / "cpu.fpk")
    plain = replace(options, target=target, output=tmp_path / "gpu.fpk", fuse=False)
    found = []
    for pack, device in ((compile_model(options), "cpu"), (compile_model(plain), "emulate")):
        with LLM(str(pack), device=device, trust=True, max_num_seqs=1) as llm:
            found.append(llm.logits([3, 1, 4, 15, 9, 26, 5, 35, 8, 9, 7, 9]))
    np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-4)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("target", [GPUS[0], pytest.param(GPUS[1], marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["bert", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("modernbert", "gemma2"))])
def test_embeddings_are_those_of_transformers(target: str, kind: str) -> None:
    made = test_packs.folder_of(kind)
    pack = kept_pack(made.folder, "f32", target)
    texts = [test_packs.ids(length, length) for length in (1, 9, 33)]
    with LLM(str(pack), device="emulate", trust=True, max_num_seqs=2) as llm:
        found, alone = llm.embed(texts), llm.embed(texts[1:2])
    wanted = np.array([made.of(text) for text in texts])
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())
    np.testing.assert_array_equal(alone[0], found[1])
