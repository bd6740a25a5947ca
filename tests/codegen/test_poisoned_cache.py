"""What one sequence leaves in blocks of the cache does not reach the next one that gets them, nor does a NaN of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ferrum import LLM, SamplingParams
from ferrum.codegen.prove import runs_here
from ferrum.codegen.target import Target, parse_target
from tests.codegen.conftest import VOCAB, model_folder
from tests.codegen.folders import compile_folder
from tests.models.test_parity import BASE, ROPES

PARAMS = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
TOKENS = np.random.default_rng(5).integers(0, VOCAB, 150).tolist()
OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in ("cpu-x86_64", "cpu-avx2", "cpu-avx512", "cpu-avx512-vnni")]


@pytest.fixture
def folder(run_folder: Path) -> Path:
    values = BASE | {"vocab_size": VOCAB, "hidden_size": 96, "intermediate_size": 168, "head_dim": 32}
    return model_folder(run_folder, "qwen3", values | {"rope_parameters": dict(ROPES["default"])})


def prompts() -> list[list[int]]:
    random = np.random.default_rng(7)
    return [random.integers(0, VOCAB, n).tolist() for n in (1, 2, 15, 16, 17, 33, 62, 119)]


@pytest.mark.parametrize("target", ["cpu", *OTHERS])
@pytest.mark.parametrize("kv_dtype", ["bf16", "int8", "f32"])
def test_memory_of_others_does_not_matter(folder: Path, kv_dtype: str, target: str) -> None:
    level = parse_target(target)
    if not isinstance(level, Target) or not runs_here(level.arch, level.requires):
        pytest.skip(f"this CPU cannot run {target}")
    found = []
    pack = compile_folder(folder, "none", target, kv_dtype=kv_dtype)
    for poison in (0x00, 0xFF):
        for chunk in (7, 64):
            with LLM(pack, max_prefill_chunk=chunk, kv_cache_memory=1 << 20, max_model_len=256, prefix_cache=False) as llm:
                llm._model.executor._kv[:] = poison
                outputs = [tuple(output.token_ids) for output in llm.generate(prompts(), PARAMS)]
                found.append((outputs, llm.logits(TOKENS)))
    for outputs, logits in found:
        assert np.isfinite(logits).all() and outputs == found[0][0] and (logits == found[0][1]).all()
