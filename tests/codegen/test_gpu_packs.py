"""The built-in model for every GPU in four formats: all kernels and all kinds of packs in emulation, answers as the CPU's."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from ferrum.codegen import backend, packing
from ferrum.codegen.driver import compile_targets
from ferrum.codegen.options import CompileOptions
from ferrum.codegen.target import GPU_TARGETS, GpuTarget
from ferrum.pack.launches import LAUNCHES_NAME, decode_table
from ferrum.pack.reader import open_pack
from tests.codegen.folders import kept_pack
from tests.codegen.test_cuda_pack import answers, check_proof
from tests.gpu.answers import asked

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SOURCES = {"cuda": "code/step.cu", "metal": "code/step.metal"}
# Of each format: which format's answers of the CPU are expected, and of how many questions. CPUs have no fp8, and round what
# they multiply with int8 to bytes.
FORMATS = {"none": ("none", 2), "int8": ("none", 1), "int4-g32": ("int4-g32", 1), "fp8": ("none", 1)}
# Of each device the format with the most kernels; the others are a sweep.
ASKED = [
    pytest.param(device, quant, marks=() if quant == most else pytest.mark.sweep)
    for device, most in (("cuda", "int4-g32"), ("metal", "fp8"))
    for quant in FORMATS
]
# As many kinds of packs as differ in more than their machine code. CUDA: without matrix instructions for bfloat16, with 163, with
# 99 KiB of shared memory, and both of these with early starts. Metal: without the type bfloat and with it.
KINDS = {"cuda": 5, "metal": 2}


def emulated(path: Path) -> tuple[str, ...]:
    """Digests of all that emulation reads of a pack: its source without the first line, which has names, launches and weights."""
    with open_pack(path, trust=True) as pack:
        source = bytes(pack.member(SOURCES[pack.manifest.target.device])).partition(b"\n")[2]
        parts = source, bytes(pack.member(LAUNCHES_NAME)), bytes(pack.weights)
        return tuple(hashlib.sha256(part).hexdigest() for part in parts)


class NoCompiler:
    """In the place of NVRTC: emulation reads the source, and machine code has rules of its own (``test_cuda_rules.py``)."""

    version, member = "none", "code/step.cubin"

    def compile(self, source: str, target: GpuTarget, keep: Path | None = None) -> bytes:
        return b""


@pytest.mark.parametrize(("device", "quant"), ASKED)
def test_every_target(device: str, quant: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One command makes all packs. Every kernel runs alone and each kind of pack as a whole, and the answers are the CPU's."""
    monkeypatch.chdir(tmp_path)
    if device == "cuda":
        monkeypatch.setattr(backend, "find_gpu_toolchain", lambda target: NoCompiler())
        monkeypatch.setattr(backend, "static_record", lambda code, plan, target: b"")
    ran: list[Path] = []
    prove = packing.prove
    monkeypatch.setattr(packing, "prove", lambda path, variant: (ran.append(path), prove(path, variant))[1])
    targets = [target for target in GPU_TARGETS if target.device == device]
    options = CompileOptions(str(tiny_folder), target=",".join(t.name for t in targets), quant=quant, name="tiny")
    paths = dict(zip(targets, compile_targets(options), strict=True))
    kinds = {emulated(path): path for path in paths.values()}
    assert len(kinds) == len(ran) == KINDS[device]
    assert len({weights for _, _, weights in kinds}) == 1
    for target, path in paths.items():
        check_proof(path)
        with open_pack(path, trust=True) as pack:
            assert pack.manifest.target.arch == target.arch and pack.manifest.model.quant == quant
            assert all(launch.on.shared <= target.shared_bytes for launch in decode_table(pack.member(LAUNCHES_NAME)).launches)
    of_cpu, count = FORMATS[quant]
    prompts = asked(count)
    expected = answers(kept_pack(tiny_folder, of_cpu), prompts, "cpu")
    for path in {source: path for (source, _, _), path in kinds.items()}.values():
        assert answers(path, prompts, "emulate") == expected, path.name
