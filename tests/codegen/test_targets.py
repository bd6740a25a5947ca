"""Targets: every x86-64 kernel set runs here as far as the CPU allows; arm64 is cross-compiled and, with qemu, run."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ferrum import LLM
from ferrum.codegen.driver import compile_model
from ferrum.codegen.options import CompileOptions
from ferrum.codegen.prove import runs_here
from ferrum.codegen.target import TARGETS, Target, best_target, parse_target
from ferrum.codegen.toolchains.cxx import _zig_compiler
from ferrum.errors import FerrumError
from ferrum.pack.programs import kv_groups
from ferrum.pack.reader import open_pack
from tests.codegen.folders import compile_folder, kept_pack
from tests.codegen.test_parity import error, logits_of
from tests.gguf.test_kept import KEPT, MEDIUM
from tests.gguf.test_models import blocky_llama

X86 = [t for t in TARGETS if t.arch == "x86_64"]
QUANTS = ("f32", "none", "int8", "int4-g32", "int4a-g32", "int4-g128", "int4a-g128")
# Of each set of instructions some formats; all of them are slow.
QUICK = {("cpu-x86_64", "int8"), ("cpu-avx2", "none"), ("cpu-avx2", "int4a-g32"), ("cpu-avx512", "int8")}
GREEDY = 64


@pytest.mark.parametrize(
    ("target", "quant"),
    [
        pytest.param(t, quant, id=f"{t.name}-{quant}", marks=() if (t.name, quant) in QUICK else pytest.mark.slow)
        for t in X86
        for quant in QUANTS
    ],
)
def test_every_format_on_every_x86_target(
    qwen3_folder: Path, tmp_path: Path, target: Target, quant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The prove stage compares the code with the interpreter on the stored weights and raises when they differ."""
    if not runs_here(target.arch, target.requires):
        pytest.skip(f"this CPU lacks a feature of {target.name}: {', '.join(target.requires)}")
    monkeypatch.setattr("ferrum.codegen.prove._GREEDY", GREEDY)
    compile_folder(qwen3_folder, quant, target.name, prove=True, output=tmp_path / "x.fpk")


def test_targets_agree_with_each_other(qwen3_folder: Path) -> None:
    tokens = torch.randint(0, 97, (70,), generator=torch.Generator().manual_seed(5)).tolist()
    import transformers

    expected = logits_of(transformers.AutoModelForCausalLM.from_pretrained(qwen3_folder), tokens)
    for target in X86:
        if runs_here(target.arch, target.requires):
            with LLM(kept_pack(qwen3_folder, "f32", target.name)) as llm:
                assert error(llm.logits(tokens), expected) <= 1e-4, target.name


def test_the_best_target_is_the_first_that_fits() -> None:
    everything = {f for t in TARGETS for f in t.requires}
    assert best_target("x86_64", everything).name == best_target("x86_64", everything, "GenuineIntel").name == "cpu-amx"
    for tile in ("amx_tile", "amx_int8", "amx_bf16"):
        assert best_target("x86_64", everything - {tile}).name == "cpu-avx512-bf16"
    assert best_target("x86_64", everything - {"amx_tile"}, "AuthenticAMD").name == "cpu-avx512-bf16"
    assert best_target("x86_64", everything - {"amx_tile"}, "GenuineIntel").name == "cpu-avx512-vnni"
    assert best_target("x86_64", everything - {"amx_tile", "avx512_bf16"}).name == "cpu-avx512-vnni"
    assert best_target("x86_64", {"avx2", "fma", "f16c", "bmi2"}).name == "cpu-avx2"
    assert best_target("x86_64", set()).name == "cpu-x86_64"
    assert best_target("aarch64", {"asimd", "asimddp"}).name == "cpu-arm64-dotprod"
    with pytest.raises(FerrumError, match="no CPU target fits riscv64"):
        best_target("riscv64", set())
    with pytest.raises(FerrumError, match="no target is called 'cpu-x'"):
        parse_target("cpu-x")


# Each target with the formats whose instructions differ on it.
ARM_QUANTS = {"cpu-arm64-i8mm": ("int4a-g32",), "cpu-arm64-dotprod": ("int8",), "cpu-arm64": ("none", "int8")}
ARM_CASES = [(name, quant) for name, quants in ARM_QUANTS.items() for quant in quants]


def test_all_arm_targets_are_tried() -> None:
    assert {t.name for t in TARGETS if t.arch == "aarch64"} == set(ARM_QUANTS)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("name", "quant"), ARM_CASES)
def test_arm_packs_are_cross_compiled(qwen3_folder: Path, name: str, quant: str) -> None:
    with open_pack(kept_pack(qwen3_folder, quant, name), trust=True) as pack:
        code = bytes(pack.member("code/step.so")[:20])
    assert code[:4] == b"\x7fELF"
    assert int.from_bytes(code[18:20], "little") == 183  # EM_AARCH64


QEMU = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
MAIN = (Path(__file__).parent / "run_step.c").read_bytes()


NO_QEMU = pytest.mark.skipif(QEMU is None, reason="qemu-aarch64 is not installed, so arm64 code cannot run on this x86-64 CPU")


def under_qemu(path: Path, name: str, folder: Path, count: int, vocab: int) -> list[NDArray[np.float32]]:
    """Logits of tokens 0, 7, 14 … of a pack whose step is compiled as a program, in one step and one by one."""
    toolchain, target = _zig_compiler(), parse_target(name)
    assert toolchain is not None and QEMU is not None
    with open_pack(path, trust=True) as pack:
        (folder / "main.c").write_bytes(bytes(pack.member("code/step.c")) + MAIN)
        (folder / "weights").write_bytes(pack.weights)
        block = kv_groups(pack.manifest)[0].unit_bytes
    flags = [f for f in toolchain.flags(target) if f not in ("-shared", "-target", target.zig_triple)]
    command = [*toolchain.command, *flags, "-O2", "-target", "aarch64-linux-musl", "-static", "main.c", "-o", "main", "-lm"]
    env = {**os.environ, "ZIG_LOCAL_CACHE_DIR": str(folder / "zig")}
    subprocess.run(command, cwd=folder, check=True, capture_output=True, env=env)
    found = []
    for chunk in (count, 1):
        command = [QEMU, "-cpu", "max", "./main", "weights", str(count), str(chunk), str(block)]
        run = subprocess.run(command, cwd=folder, capture_output=True, check=True)
        found.append(np.frombuffer(run.stdout, np.float32).reshape(count, vocab))
    return found


@pytest.mark.slow
@NO_QEMU
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("name", "quant"), ARM_CASES)
def test_arm_kernels_run_under_qemu(qwen3_folder: Path, tmp_path: Path, name: str, quant: str) -> None:
    with LLM(kept_pack(qwen3_folder, quant)) as llm:
        expected = llm.logits([i * 7 % 97 for i in range(20)])
    for got in under_qemu(kept_pack(qwen3_folder, quant, name), name, tmp_path, 20, 97):
        # other instructions round elsewhere; activations are rounded to 8 or 16 bits in between
        assert error(got, expected) <= 3e-2


@pytest.mark.slow
@NO_QEMU
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ARM_QUANTS)
@pytest.mark.parametrize("kinds", [KEPT, MEDIUM], ids=["blocks of 32", "medium"])
def test_kept_blocks_run_under_qemu(name: str, kinds: dict[str, str], tmp_path: Path) -> None:
    _, path = blocky_llama(tmp_path / "model.gguf", kinds)
    with LLM(str(compile_model(CompileOptions(str(path), output=tmp_path / "here.fpk"))), trust=True) as llm:
        expected = llm.logits([i * 7 % 64 for i in range(20)])
    pack = compile_model(CompileOptions(str(path), target=name, output=tmp_path / "there.fpk"))
    for got in under_qemu(pack, name, tmp_path, 20, 64):
        assert error(got, expected) <= 3e-2
