"""The engine over the CPU device: its sampler against the reference, and outputs that do not depend on the batching."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from ferrum.devices.base import Executor
from ferrum.devices.options import DeviceOptions
from ferrum.engine.load import load_model
from ferrum.engine.options import EngineOptions
from ferrum.engine.params import SamplingParams
from ferrum.pack.sampling import sample_reference
from tests.codegen.folders import compile_folder, save
from tests.engine.random_rows import fill_random_rows

VOCAB_SIZE = 777
CONTEXT = 256
LENGTHS = (1, 3, 17, 40, 64, 100, 150, 5, 9, 33, 47, 12, 2, 130)
BLOCK_BYTES = 2 * 2 * 2 * 32 * 16 * 4  # keys and values, layers, kv heads, head_dim, tokens, at most float32
Pack = Callable[[str], Path]


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """A random model in a given format, compiled once each."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(5)
    config = transformers.Qwen3Config(
        vocab_size=VOCAB_SIZE, hidden_size=96, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=CONTEXT, initializer_range=0.15, tie_word_embeddings=True,
        eos_token_id=None, bos_token_id=None,
    )  # fmt: skip
    save(transformers.Qwen3ForCausalLM(config), folder)
    made: dict[str, Path] = {}

    def find(quant: str) -> Path:
        if quant not in made:
            made[quant] = compile_folder(folder, quant)
        return made[quant]

    return find


def generate(
    path: Path, prompts: list[list[int]], params: SamplingParams, *, alone: bool = False, **options: int
) -> tuple[list[list[int]], int]:
    """Tokens of every prompt, and how many preemptions there were."""
    values = {"max_seqs": 16, "max_tokens": 512, "num_threads": 1, **options}
    cache = bool(values.pop("prefix_cache", 1))
    model = load_model(path, device_options=DeviceOptions(**values), engine_options=EngineOptions(prefix_cache=cache))
    found: dict[str, list[int]] = {str(i): [] for i in range(len(prompts))}

    def drain() -> None:
        while model.engine.has_work:
            for event in model.engine.step():
                found[event.request_id].append(event.token)

    try:
        for i, prompt in enumerate(prompts):
            model.engine.add(str(i), prompt, params)
            if alone:
                drain()
        drain()
        assert model.engine.stats().blocks_used == 0
        return list(found.values()), model.engine.stats().num_preemptions
    finally:
        model.close()


@pytest.mark.parametrize("quant", ["f32", "none", pytest.param("int8", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0, max_tokens=24, ignore_eos=True),
        SamplingParams(temperature=0.9, seed=11, top_p=0.95, top_k=200, max_tokens=24, repetition_penalty=1.1),
    ],
    ids=["greedy", "seeded"],
)
def test_outputs_do_not_depend_on_the_batching(pack: Pack, quant: str, params: SamplingParams) -> None:
    random = np.random.default_rng(3)
    prompts = [random.integers(0, VOCAB_SIZE, n).tolist() for n in LENGTHS]
    prompts += [prompts[6][:140] + prompts[0], prompts[6][:48]]  # prefixes that others have
    path = pack(quant)
    alone, _ = generate(path, prompts, params, alone=True, prefix_cache=0)
    assert len({tuple(tokens) for tokens in alone}) == len(alone)
    ways = [
        {},
        {"prefix_cache": 0},
        {"max_tokens": 1},
        {"max_tokens": 7},
        {"max_tokens": 64},
        {"max_seqs": 3},
        {"num_threads": 2},
    ]
    for way in ways:
        assert generate(path, prompts, params, **way)[0] == alone, way
    tight, preemptions = generate(path, prompts, params, kv_cache_bytes=18 * BLOCK_BYTES // (1 if quant == "f32" else 2))
    assert tight == alone and preemptions > 0


@pytest.fixture(scope="module")
def executor(pack: Pack) -> Iterator[Executor]:
    options = DeviceOptions(max_seqs=4, max_samples=64, max_tokens=64, num_threads=1)
    model = load_model(pack("f32"), device_options=options)
    yield model.executor
    model.close()


def test_the_compiled_sampler_is_the_reference(executor: Executor) -> None:
    random = np.random.default_rng(8)
    b, different, rows = executor.buffers, 0, 0
    for _ in range(30):
        fill_random_rows(executor, random, VOCAB_SIZE)
        executor.step()
        got = {name: getattr(b, name).copy() for name in ("out_token", "out_logprob", "top_token", "top_logprob")}
        sample_reference(executor.logits().copy(), b)
        for row in range(b.num_samples):
            rows += 1
            if got["out_token"][row] != b.out_token[row]:
                assert b.temperature[row] > 0, "greedy has no rounding"
                different += 1
                continue
            wanted = b.num_logprobs[row]
            if wanted >= 0:
                assert got["out_logprob"][row] == pytest.approx(b.out_logprob[row], abs=1e-4)
                np.testing.assert_array_equal(got["top_token"][row, :wanted], b.top_token[row, :wanted])
                np.testing.assert_allclose(got["top_logprob"][row, :wanted], b.top_logprob[row, :wanted], atol=1e-4)
    assert different <= rows // 1000, "more than rounding at the borders of the cumulative sum"
