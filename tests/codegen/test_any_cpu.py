"""One pack for several CPUs: which variant of its code a machine takes, and that all of them read the same weights alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ferrum import LLM
from ferrum.cli.list import pack_status
from ferrum.cli.main import main
from ferrum.codegen import prove
from ferrum.codegen.driver import compile_model
from ferrum.codegen.options import CompileOptions
from ferrum.codegen.prove import runs_here
from ferrum.codegen.target import ANY_CPUS, AnyCpu, Target, best_target, parse_target
from ferrum.codegen.toolchains.cxx import CToolchain
from ferrum.devices import cpu
from ferrum.devices.base import variant_of
from ferrum.devices.host import machine_features
from ferrum.devices.options import DeviceOptions
from ferrum.errors import FerrumError
from ferrum.pack.launch_check import read_table
from ferrum.pack.programs import choose_code
from ferrum.pack.reader import open_pack
from ferrum.pack.schema import STEP, Manifest
from ferrum.pack.verify import verify_pack
from tests.codegen.folders import compile_folder, kept_pack, traced
from tests.codegen.test_parity import error
from tests.codegen.test_stand_ins import PLAIN, in_plain_c
from tests.conftest import CommandLine
from tests.pack.helpers import code_record, minimal_manifest

X86, ARM = ANY_CPUS
HERE = [v.variant for v in X86.variants if runs_here(v.arch, v.requires)]
MAKERS = ("AuthenticAMD", "GenuineIntel")


def records(target: AnyCpu) -> Manifest:
    """A pack's variants as the compiler writes them."""
    codes = [
        code_record(name=v.variant, features=[f for f in v.requires if f not in target.requires]) for v in target.variants
    ]
    manifest: Manifest = minimal_manifest(code=codes)
    return manifest


@pytest.mark.parametrize("target", ANY_CPUS, ids=lambda t: t.name)
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_machine_takes_what_it_would_be_compiled_for(target: AnyCpu, data: st.DataObject) -> None:
    """Whatever features a CPU has, a pack for all runs the code that ``--target cpu`` would have made."""
    every = sorted({f for v in target.variants for f in v.requires} - set(MAKERS))
    maker = data.draw(st.sampled_from(MAKERS))
    features = {*target.requires, *data.draw(st.sets(st.sampled_from(every))), maker}
    if data.draw(st.booleans()):  # real machines have all that a level asks for
        features |= set(data.draw(st.sampled_from(target.variants)).requires) - set(MAKERS)
    found = choose_code(records(target), "x.fpk", features)
    assert f"cpu-{found.name}" == best_target(target.arch, features, maker).name


def test_variants_are_in_order_and_named() -> None:
    for target in ANY_CPUS:
        names = [v.variant for v in target.variants]
        assert len(set(names)) == len(names) and parse_target(target.name) is target
        assert set(target.requires) <= set(target.variants[-1].requires) and target.requires in ((), ("asimd",))
        for i, first in enumerate(target.variants):  # none stands behind one that needs less: it would never be taken
            assert not any(set(before.requires) <= set(first.requires) for before in target.variants[:i])


@pytest.mark.parametrize(
    ("features", "variant", "said"),
    [
        ({"avx2"}, "avx2", "the variant avx2 does not run here: this machine lacks fma, f16c, bmi2"),
        (set(), "avx9", "variants: amx, avx512-bf16, avx512-vnni, avx512, avx2, x86_64"),
    ],
)
def test_a_variant_that_cannot_be_had_is_refused(features: set[str], variant: str, said: str) -> None:
    with pytest.raises(FerrumError) as caught:
        choose_code(records(X86), "x.fpk", features, variant)
    assert said in str(caught.value) and caught.value.code in ("wrong-machine", "variant-unknown")


def test_a_cpu_whose_tiles_are_refused_takes_the_next_level(tmp_path: Path) -> None:
    amx = X86.variants[0]
    (tmp_path / "cpuinfo").write_text(f"vendor_id : GenuineIntel\nflags : {' '.join(amx.requires)} avx512_bf16\n")
    for refused, taken in (("", "amx"), ("Operation not permitted", "avx512-vnni")):
        features = machine_features(tmp_path, lambda said=refused: said)
        assert choose_code(records(X86), "x.fpk", features).name == taken
        assert best_target("x86_64", features, "GenuineIntel").name == f"cpu-{taken}"


def test_a_pack_for_tiles_alone_says_why_it_does_not_run(
    qwen3_folder: Path, tmp_path: Path, digests_for_code: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = compile_folder(qwen3_folder, "int8", "cpu-amx", output=tmp_path / "amx.fpk")
    lacking = frozenset(X86.variants[1].requires)
    monkeypatch.setattr(cpu, "machine_features", lambda: lacking)
    monkeypatch.setattr(cpu, "machine_arch", lambda: "x86_64")
    for note in ("", "the CPU has tiles, and the system refuses them: Operation not permitted"):
        monkeypatch.setattr(cpu, "tiles_note", lambda said=note: said)
        with pytest.raises(FerrumError) as caught, open_pack(path, trust=True) as pack:
            cpu.CpuDevice().load(pack, DeviceOptions())
        said = str(caught.value)
        assert caught.value.code == "wrong-machine" and "\n" not in said
        assert "the pack is for cpu-amx and this is x86_64, which lacks amx_bf16, amx_int8, amx_tile" in said and note in said


@pytest.fixture
def unbuilt(qwen3_folder: Path, tmp_path: Path, digests_for_code: None) -> Path:
    """A pack of all variants with digests in the place of code."""
    return compile_folder(qwen3_folder, "int8", X86.name, output=tmp_path / "any.fpk")


def test_a_pack_for_all_holds_its_weights_once(unbuilt: Path, qwen3_folder: Path, tmp_path: Path) -> None:
    single = compile_folder(qwen3_folder, "int8", "cpu-avx512-vnni", output=tmp_path / "single.fpk")
    with open_pack(unbuilt, trust=True) as pack, open_pack(single, trust=True) as one:
        manifest = pack.manifest
        assert [code.name for code in manifest.code] == [v.variant for v in X86.variants]
        assert [member.name for member in manifest.members].count("weights") == 1
        assert manifest.target.name == X86.name and manifest.target.features == [] and not any(c.proved for c in manifest.code)
        # nothing is lost for the widest: weights and source are those of its own pack
        assert manifest.contract == one.manifest.contract and bytes(pack.weights) == bytes(one.weights)
        assert bytes(pack.member("code/avx512-vnni/step.c")) == bytes(one.member("code/step.c"))
        for code in manifest.code:
            build = code.programs[STEP]
            assert build.entry == f"code/{code.name}/step.so" and read_table(pack, code.name).code == build.entry
            parts = {int(k.params.get("unit_parts", 1)) for k in build.kernels if k.spec == "linear"}
            assert parts == ({1} if code.name.startswith(("amx", "avx512")) else {4} if code.name == "avx2" else {8})


def test_a_pack_for_all_is_shown(unbuilt: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(unbuilt)]) == 0
    shown = capsys.readouterr().out
    lines = [line for line in shown.splitlines() if line.startswith("code ")]
    assert [line.split()[1].rstrip(":") for line in lines] == [v.variant for v in X86.variants]
    assert [line.split()[1].rstrip(":") for line in lines if line.endswith("taken here")] == HERE[:1]
    assert pack_status(unbuilt) == f"ready, takes {HERE[0]} here"
    assert f"below    {HERE[0]}; others with --variant NAME" in shown and "proved" not in shown
    assert main(["explain", str(unbuilt), "--why", "--variant", "x86_64"]) == 0
    assert "8 outputs in registers, 8 times to a unit" in capsys.readouterr().out
    assert main(["explain", str(unbuilt), "--source", "--variant", "avx512"]) == 0
    assert "#define SIMD_avx512 1" in capsys.readouterr().out
    machine = "x86_64", {f for v in X86.variants if v.variant == "avx2" for f in v.requires}
    assert next(c for c in verify_pack(unbuilt, machine=machine).checks if c.name == "machine").detail == "takes the variant avx2"


def test_stages_of_variants_are_dumped_apart(qwen3_folder: Path, tmp_path: Path, unbuilt: Path) -> None:
    """And what was stopped and gone on from is the same pack, as is one that was made by another number of threads."""
    dumps = tmp_path / "dumps"
    options = CompileOptions(str(qwen3_folder), X86.name, "int8", prove=False, jobs=1, dump_dir=dumps, output=tmp_path / "x.fpk")
    whole = compile_model(options).read_bytes()
    assert {p.name for p in dumps.iterdir() if p.is_dir()} == {v.name for v in X86.variants}
    assert compile_model(replace(options, start_from="select")).read_bytes() == whole == unbuilt.read_bytes()


def test_what_is_measured_on_one_cpu_is_not_for_all(qwen3_folder: Path, tmp_path: Path) -> None:
    options = CompileOptions(str(qwen3_folder), X86.name, dump_dir=traced(qwen3_folder), start_from="layout", tune=True)
    with pytest.raises(FerrumError, match="is not measured on one"):
        compile_model(replace(options, output=tmp_path / "x.fpk"))


def test_a_cache_is_laid_out_for_the_widest_vectors(qwen3_folder: Path, tmp_path: Path, digests_for_code: None) -> None:
    """Heads of a width that is no multiple of the widest vector: contracts would differ, and the compiler would stop."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(qwen3_folder)
    config.head_dim = 12
    transformers.Qwen3ForCausalLM(config).save_pretrained(tmp_path / "model")
    compile_folder(tmp_path / "model", "none", X86.name, output=tmp_path / "x.fpk")


TOKENS = [i * 7 % 97 for i in range(30)]


def logits_by(pack: Path, variant: str, monkeypatch: pytest.MonkeyPatch) -> NDArray[np.float32]:
    monkeypatch.setenv("FERRUM_VARIANT", variant)
    with LLM(pack) as llm:
        assert variant_of(llm._model.executor) == variant
        return llm.logits(TOKENS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("quant", "apart"),
    [("f32", 1e-4), *(pytest.param(*case, marks=pytest.mark.sweep) for case in (("none", 2e-2), ("int4-g32", 5e-2)))],
)
def test_variants_say_the_same(qwen3_folder: Path, quant: str, apart: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums are in another order, and activations that are rounded may fall to another side."""
    if len(HERE) < 2:
        pytest.skip("this CPU runs one variant only")
    path = kept_pack(qwen3_folder, quant, X86.name, prove=True)
    with open_pack(path) as pack:
        assert [code.name for code in pack.manifest.code if code.proved] == HERE
    first, *others = (logits_by(path, variant, monkeypatch) for variant in HERE)
    for other in others:
        assert error(other, first) <= apart


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_built_in_model_answers_by_every_variant(ferrum: CommandLine, tmp_path: Path) -> None:
    """The same pack on each level that this machine has; without a wish it takes the first."""
    assert ferrum("compile", "tiny", "--target", X86.name, "--quant", "int8", "-o", "any.fpk", timeout=500).returncode == 0
    assert ferrum("compile", "tiny", "--quant", "int8", "-o", "one.fpk", timeout=500).returncode == 0
    for variant in ("", *HERE):
        asked = ferrum("run", "any.fpk", "--prompt", "What is 17 + 25?", "--temperature", "0", FERRUM_VARIANT=variant)
        assert (asked.returncode, asked.stdout.strip()) == (0, "42"), asked.stderr
        verified = ferrum("verify", "any.fpk", "--numeric", "--variant", variant)
        assert verified.returncode == 0, verified.stderr
    shown = ferrum("bench", "any.fpk", "--rounds", "1", "--prompt-tokens", "8", "--max-tokens", "4", "--profile")
    assert shown.returncode == 0 and f"{X86.name}, {HERE[0]}:" in shown.stdout, shown.stderr
    alike = ferrum("diff", "one.fpk", "any.fpk")
    assert alike.returncode == 0 and "avx512-vnni, avx512, avx2, x86_64" in alike.stdout, alike.stderr
    away = next((v.variant for v in X86.variants if v.variant not in HERE), "")
    refused = ferrum("run", "any.fpk", "--prompt", "x", "--variant", away or "avx9")
    assert refused.returncode == 1 and "variant" in refused.stderr and "Traceback" not in refused.stderr
    size = {name: (tmp_path / name).stat().st_size for name in ("any.fpk", "one.fpk")}
    assert size["any.fpk"] < size["one.fpk"] + (8 << 20)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("quant", ["none", pytest.param("int4-g32", marks=pytest.mark.sweep)])
def test_every_variant_is_proved(qwen3_folder: Path, tmp_path: Path, quant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole pack by each variant: those of CPUs that are not here with plain C in the place of their instructions."""
    if not runs_here(PLAIN.arch, PLAIN.requires):
        pytest.skip("stand-ins are compiled for AVX2, which this CPU lacks")
    compiled, here = CToolchain.compile, machine_features()

    def instead(compiler: CToolchain, source: str, target: Target, keep: Path | None = None) -> bytes:
        if here.issuperset(target.requires):
            return compiled(compiler, source, target, keep)
        return compiled(compiler, in_plain_c(source), PLAIN, keep)

    everything = here.union(*(variant.requires for variant in X86.variants))
    monkeypatch.setattr(CToolchain, "compile", instead)
    for module in (prove, cpu):
        monkeypatch.setattr(module, "machine_features", lambda: everything)
    path = compile_folder(qwen3_folder, quant, X86.name, prove=True, output=tmp_path / "x.fpk")
    with open_pack(path, trust=True) as pack:
        assert [code.name for code in pack.manifest.code if code.proved] == [v.variant for v in X86.variants]
        layers = {code.programs[STEP].layers for code in pack.manifest.code}
        assert len(layers) == (2 if quant == "none" else 1)  # where rows are rounded to bfloat16 first, others can be seen


def test_a_pack_for_all_of_arm_has_the_code_of_each(qwen3_folder: Path, tmp_path: Path, digests_for_code: None) -> None:
    """Vectors of one length: nothing is read in parts, and each variant is what its own pack holds."""
    path = compile_folder(qwen3_folder, "int8", ARM.name, output=tmp_path / "any.fpk")
    with open_pack(path, trust=True) as pack:
        assert pack.manifest.target.features == ["asimd"] and pack.manifest.code[-1].features == []
        for target in ARM.variants:
            single = compile_folder(qwen3_folder, "int8", target.name, output=tmp_path / f"{target.name}.fpk")
            with open_pack(single, trust=True) as one:
                assert one.manifest.contract == pack.manifest.contract and bytes(one.weights) == bytes(pack.weights)
                assert bytes(pack.member(f"code/{target.variant}/step.so")) == bytes(one.member("code/step.so"))
