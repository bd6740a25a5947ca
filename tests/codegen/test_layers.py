"""``verify --numeric`` names the layer whose weights are not those that the interpreter saw, whatever runs the pack."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import msgspec
import pytest
import torch
import transformers

from ferrum.codegen.prove import load_for_proof
from ferrum.errors import FerrumError
from ferrum.pack.layers import LayerTest
from ferrum.pack.reader import open_pack
from ferrum.pack.selftest import read_layers
from ferrum.pack.verify import Check
from ferrum.proof.numbers import ProofReport, prove_pack
from tests.codegen.folders import compile_folder, save
from tests.pack.rewrite import Edit, rewrite, turn_signs

Packs = Callable[..., Path]
PARTS = ["self_attn.q_proj+k_proj+v_proj", "self_attn.o_proj", "mlp.gate_proj+up_proj", "mlp.down_proj"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    config = transformers.Qwen3Config(
        vocab_size=512, hidden_size=128, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=128, initializer_range=0.1, tie_word_embeddings=True,
        eos_token_id=None, bos_token_id=None,
    )  # fmt: skip
    return save(transformers.Qwen3ForCausalLM(config), tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def packs(folder: Path) -> Callable[..., Path]:
    """The model in a format for a target, compiled and proved once each."""
    return cache(lambda quant, target="cpu": compile_folder(folder, quant, target=target, prove=True))


def numeric(pack: Path) -> tuple[Check, ProofReport]:
    report = prove_pack(pack, load_for_proof, trust=True)
    return report.checks[-1], report


def verdict(pack: Path, edit: Edit) -> str:
    """The detail of the check of a pack that must fail."""
    bad = rewrite(pack, pack.with_suffix(".bad.fpk"), edit)
    check, report = numeric(bad)
    assert check.state == "failed" and all(c.state != "failed" for c in report.checks[:-1]), "hashes must fit"
    return check.detail


@pytest.mark.parametrize("quant", ["none", pytest.param("int8", marks=pytest.mark.slow), "int4-g32"])
def test_the_layer_of_a_wrong_weight_is_named(packs: Packs, quant: str) -> None:
    pack = packs(quant)
    check, report = numeric(pack)
    assert check.state == "ok" and f"{1 + 4 * 5} values of layers" in check.detail
    assert all(case.layers and case.layers.first == -1 for case in report.cases)
    for part in PARTS:
        edit = turn_signs(pack, f"model.layers.2.{part}.weight", 0, 8192)
        assert verdict(pack, edit).startswith(f"layer 2: {part} is the first to deviate, by "), part


@pytest.mark.parametrize("target", [pytest.param("cuda-sm80", marks=pytest.mark.slow), "metal-m1"])
def test_a_pack_for_a_gpu_in_emulation(packs: Packs, target: str) -> None:
    """Values that only exist as bf16 rows are seen too; the proof has run the intact pack before."""
    if target.startswith("cuda"):
        pytest.importorskip("cuda.bindings.nvrtc", reason="cuda-bindings is not installed")
    pack = packs("none", target)
    edit = turn_signs(pack, "model.layers.2.mlp.gate_proj+up_proj.weight", 0, 8192)
    assert verdict(pack, edit).startswith("layer 2: mlp.gate_proj+up_proj is the first to deviate, by ")


def test_what_follows_the_last_layer(packs: Packs) -> None:
    """A wrong final norm: all layers agree, and the check says so."""
    pack = packs("none")
    assert verdict(pack, turn_signs(pack, "model.norm.weight", 0, 256)).startswith("the layers agree to ")


def test_values_are_the_same_step_by_step(packs: Packs) -> None:
    """A step that is stopped after every value ends with the logits of one that is not, and leaves nothing behind."""
    from ferrum.proof.one_sequence import block_table, describe

    with open_pack(packs("none")) as pack:
        executor, layers = load_for_proof(pack), read_layers(pack)
        assert layers is not None
        for tokens in ([5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15], [5]):
            describe(executor, tokens, 0, block_table(executor, len(tokens)), sample=True)
            executor.step()
            whole = executor.logits().copy()
            values = [value.copy() for value in executor.step_through(layers.points)]  # type: ignore[attr-defined]
            assert len(values) == len(layers.points) and values[0].shape == (len(tokens), 128)
            assert (executor.logits() == whole).all()
            next(iter(executor.step_through(layers.points)))  # type: ignore[attr-defined]  # left in the middle
            executor.step()
            assert (executor.logits() == whole).all()
        wrong = msgspec.structs.replace(layers.points[0], slot=10_000)
        with pytest.raises(FerrumError, match="slot 10000"):
            list(executor.step_through([wrong]))  # type: ignore[attr-defined]
        executor.close()


@pytest.mark.slow
def test_a_step_may_stop_after_any_launch(packs: Packs) -> None:
    """Those too after which threads do not wait for each other, and on taken cores: a thread that lost its core in a whole step
    rests for some, but one that missed a part of a step would lack rows that it keeps for itself."""
    from ferrum.proof.one_sequence import block_table, describe

    with open_pack(packs("none")) as pack:
        executor, layers = load_for_proof(pack), read_layers(pack)
        assert layers is not None
        everywhere = [msgspec.structs.replace(layers.points[0], launch=i) for i in range(layers.points[-1].launch + 1)]
        whole = {}
        for token in range(5, 25):  # what an earlier token left would be right for the same one
            describe(executor, [token], 0, block_table(executor, 1), sample=True)
            executor.step()
            whole[token] = executor.logits().copy()
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
        try:
            for token in [*whole] * 10:
                describe(executor, [token], 0, block_table(executor, 1), sample=True)
                list(executor.step_through(everywhere))  # type: ignore[attr-defined]
                assert (executor.logits() == whole[token]).all()
        finally:
            for process in busy:
                process.kill()
                process.wait()
            executor.close()


def test_the_member_is_small(packs: Packs) -> None:
    """A few hundred bytes a value and case, however large the model is."""
    pack = packs("none")
    with open_pack(pack) as opened:
        test = msgspec.json.decode(opened.member("step/layers.json"), type=LayerTest)
        assert len(opened.member("step/layers.json")) < 600 * len(test.points)
