"""Whole models on the level with tiles, a stand-in in the place of their instructions: proved, and no bit depends on company."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ferrum import LLM, SamplingParams
from ferrum.codegen import prove
from ferrum.codegen.prove import runs_here
from ferrum.codegen.target import Target, parse_target
from ferrum.codegen.toolchains.cxx import CToolchain
from ferrum.devices import cpu
from ferrum.devices.host import machine_features
from ferrum.pack.programs import build_of
from ferrum.pack.reader import open_pack, read_manifest
from tests.codegen.conftest import VOCAB, model_folder
from tests.codegen.folders import compile_folder
from tests.codegen.test_parity import error
from tests.codegen.test_stand_ins import PLAIN, in_plain_c
from tests.codegen.tiles import with_tiles
from tests.models.test_parity import BASE, ROPES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
AMX, VECTORS = parse_target("cpu-amx"), parse_target("cpu-avx512-vnni")
assert isinstance(AMX, Target) and isinstance(VECTORS, Target)
PARAMS = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
TOKENS = np.random.default_rng(5).integers(0, VOCAB, 150).tolist()


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both levels are compiled alike, so that they may be compared in bits."""
    if not runs_here(PLAIN.arch, PLAIN.requires):
        pytest.skip("stand-ins are compiled for AVX2, which this CPU lacks")
    compiled, native, here = CToolchain.compile, runs_here(VECTORS.arch, VECTORS.requires), machine_features()

    def instead(compiler: CToolchain, source: str, target: Target, keep: Path | None = None) -> bytes:
        if native:
            return compiled(compiler, with_tiles(source), replace(target, cflags=(*VECTORS.cflags, "-O1")), keep)
        return compiled(compiler, in_plain_c(source), PLAIN, keep)

    monkeypatch.setattr(CToolchain, "compile", instead)
    for module in (prove, cpu):
        monkeypatch.setattr(module, "machine_features", lambda: here.union(AMX.requires, VECTORS.requires))


@pytest.fixture
def folder(run_folder: Path) -> Path:
    """Heads of 32 in groups of two, and widths that leave a part of a tile."""
    values = BASE | {"vocab_size": VOCAB, "hidden_size": 96, "intermediate_size": 168, "head_dim": 32}
    return model_folder(run_folder, "qwen3", values | {"rope_parameters": dict(ROPES["default"])})


def prompts(count: int) -> list[list[int]]:
    random = np.random.default_rng(count)
    return [random.integers(0, VOCAB, n).tolist() for n in random.integers(1, 120, count)]


def tokens(llm: LLM, many: list[list[int]]) -> list[list[int]]:
    return [list(out.token_ids) for out in llm.generate(many, PARAMS)]


def kernels(path: Path, spec: str) -> list[dict[str, object]]:
    return [dict(kernel.params) for kernel in build_of(read_manifest(path)).kernels if kernel.spec == spec]


@pytest.mark.parametrize(("quant", "taken"), [("none", 1), ("int4-g32", 8)])
def test_greedy_tokens_do_not_depend_on_company(folder: Path, tmp_path: Path, quant: str, taken: int) -> None:
    """Products and attention by tiles: alone, in batches, in chunks, after preemption, by any number of threads."""
    path = compile_folder(folder, quant, AMX.name, prove=True, output=tmp_path / "x.fpk")
    with open_pack(path, trust=True) as pack:
        assert [code.proved for code in pack.manifest.code] == [True]
    assert {params["amx_rows"] for params in kernels(path, "linear")} == {taken}
    assert all(params["tiles"] for params in kernels(path, "paged_attention"))
    many = prompts(9)
    with LLM(path, prefix_cache=False) as llm:
        expected = [tokens(llm, [prompt])[0] for prompt in many]
        alone = llm.logits(TOKENS)
    for count, chunk, threads in ((2, 512, 1), (9, 7, 2), (9, 64, 3)):
        with LLM(path, max_prefill_chunk=chunk, num_threads=threads) as llm:
            assert tokens(llm, many[:count]) == expected[:count], (count, chunk, threads)
    with LLM(path, num_threads=1) as llm:
        assert (llm.logits(TOKENS) == alone).all()


def test_whole_sums_make_the_same_logits(folder: Path, tmp_path: Path) -> None:
    """Weights of 8 bits and a cache of bytes: tiles and vectors differ in their way alone, so no bit does."""
    paths = [compile_folder(folder, "int8", t.name, output=tmp_path / f"{t.name}.fpk", kv_dtype="int8") for t in (AMX, VECTORS)]
    assert [{params.get("amx_rows", 0) for params in kernels(path, "linear")} for path in paths] == [{8}, {0}]
    found = []
    for path in paths:
        with LLM(path) as llm:
            found.append(llm.logits(TOKENS))
    assert found[0].any() and (found[0].view(np.uint32) == found[1].view(np.uint32)).all()


def test_attention_by_tiles_is_that_of_floats_but_for_rounding(folder: Path, tmp_path: Path) -> None:
    found = []
    for target in (AMX, VECTORS):
        with LLM(compile_folder(folder, "f32", target.name, output=tmp_path / f"{target.name}.fpk", kv_dtype="bf16")) as llm:
            found.append(llm.logits(TOKENS))
    assert (found[0] != found[1]).any() and error(found[0], found[1]) <= 2e-2


def test_memory_of_others_is_not_multiplied(folder: Path, tmp_path: Path) -> None:
    """A tile holds whole blocks: what lies behind a context's end, NaNs here, must not reach its sums."""
    path = compile_folder(folder, "none", AMX.name, output=tmp_path / "x.fpk")
    many, found = prompts(5), []
    for poison in (0x00, 0xFF):
        with LLM(path, kv_cache_memory=1 << 20, max_model_len=256, prefix_cache=False) as llm:
            llm._model.executor._kv[:] = poison
            found.append((tokens(llm, many), llm.logits(TOKENS)))
    assert found[0][0] == found[1][0] and (found[0][1] == found[1][1]).all() and np.isfinite(found[0][1]).all()


@pytest.mark.parametrize("window", [21, 80])
def test_a_window_passes_blocks_whole_and_in_part(run_folder: Path, tmp_path: Path, window: int) -> None:
    """What lies before a window may be another sequence's, NaNs here."""
    values = BASE | {"vocab_size": VOCAB, "sliding_window": window, "rope_parameters": dict(ROPES["default"])}
    folder, many, found = model_folder(run_folder, "mistral", values), prompts(5), []
    for target, poison, chunk in ((AMX, 0x00, 512), (AMX, 0xFF, 19), (VECTORS, 0x00, 512)):
        path = compile_folder(folder, "f32", target.name, output=tmp_path / f"{target.name}.fpk", kv_dtype="bf16")
        with LLM(path, kv_cache_memory=1 << 20, max_model_len=256, prefix_cache=False, max_prefill_chunk=chunk) as llm:
            llm._model.executor._kv[:] = poison
            found.append((tokens(llm, many), llm.logits(TOKENS)))
    (expected, logits), (again, same), (_, of_vectors) = found
    assert again == expected and np.isfinite(same).all() and (same == logits).all()
    assert (logits != of_vectors).any() and error(logits, of_vectors) <= 2e-2


def test_the_built_in_model_answers(tiny_folder: Path, tmp_path: Path) -> None:
    params = SamplingParams(temperature=0, max_tokens=16)
    for quant in ("none", "int8"):
        with LLM(compile_folder(tiny_folder, quant, AMX.name, output=tmp_path / f"{quant}.fpk")) as llm:
            answers = [
                llm.chat([{"role": "user", "content": f"What is {a} + {b}?"}], params).text for a, b in ((17, 25), (8, 41))
            ]
        assert answers == ["42", "49"], quant
