"""Measuring and testing a GPU with what was prepared elsewhere: a bare Python, missing packages, no driver, a bad one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from dataclasses import asdict
from importlib.metadata import distribution, version
from pathlib import Path

import pytest

from ferrum.codegen.target import BY_NAME, GpuTarget
from tests.bench import gpu, gpu_models, gpu_prepare, gpu_report
from tests.bench.test_gpu import SHAPE
from tests.devices.conftest import build_libcuda
from tests.devices.null_model import write_launch_pack
from tests.gpu import carried

REPOSITORY = Path(__file__).resolve().parents[2]


def prepared_folder(folder: Path, models: list[str], target: str = "cuda-sm90", arch: str = "sm_90") -> Path:
    """A folder as ``--prepare`` leaves it, without the packs."""
    folder.mkdir(exist_ok=True)
    made = carried.Carried(target, arch, models, {name: version(name) for name in carried.BENCH})
    (folder / carried.LIST).write_text(json.dumps(asdict(made)))
    return folder


def bare_python(folder: Path) -> list[str]:
    """An interpreter with the standard library and nothing else, pip included; -E, -s: nothing from outside either."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=100)
    return [str(folder / "bin" / "python"), "-E", "-s", "-m"]


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=env, timeout=600, check=False)


def pack_wheel(name: str, folder: Path) -> None:
    """A wheel of an installed package."""
    found = distribution(name)
    folder.mkdir(exist_ok=True)
    tag = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    with zipfile.ZipFile(folder / f"{name.replace('-', '_')}-{found.version}-{tag}-{tag}-linux_x86_64.whl", "w") as wheel:
        for file in found.files or ():
            path = Path(str(found.locate_file(file)))
            if ".." not in file.parts and path.is_file() and path.suffix != ".pyc":
                wheel.write(path, str(file))


def test_a_bare_python_is_told_what_it_lacks(tmp_path: Path) -> None:
    """One line each: nothing prepared, packages that are nowhere."""
    python = bare_python(tmp_path / "bare")
    for module in ("tests.bench.gpu", "tests.gpu"):
        empty = run([*python, module, "--prepared", str(tmp_path)])
        assert empty.returncode == 1 and empty.stderr.startswith("error: nothing was prepared in ")
        lacking = run([*python, module, "--prepared", str(prepared_folder(tmp_path / "prepared", []))])
        assert lacking.returncode == 1 and len(lacking.stderr.splitlines()) == 1
        assert all(f"{name} {version(name)}" in lacking.stderr for name in ("numpy", "msgspec", "cuda-bindings"))
        assert "--wheels" in lacking.stderr and lacking.stdout == ""


def test_a_machine_without_a_driver_is_told_so(tmp_path: Path) -> None:
    pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
    result = run([sys.executable, "-m", "tests.bench.gpu", "--prepared", str(prepared_folder(tmp_path, []))])
    assert result.returncode == 1 and "no NVIDIA driver" in result.stderr and len(result.stderr.splitlines()) == 1


def test_what_is_carried_is_one_archive_until_it_is_read(tmp_path: Path) -> None:
    """Twice, since what was made once is not made again."""
    folder = prepared_folder(tmp_path / "prepared", [])
    (folder / "models" / "small").mkdir(parents=True)
    (folder / "models" / "small" / "code").write_bytes(b"code" * 1000)
    (folder / carried.WHEELS).mkdir()
    (folder / carried.WHEELS / "a.whl").touch()
    for _ in range(2):
        carried.pack(folder)
        assert {path.name for path in folder.rglob("*")} == {carried.LIST, carried.FILES, carried.WHEELS, "a.whl"}
        assert (folder / carried.FILES).stat().st_size < 1000
        carried.read(folder)
        assert (folder / "models" / "small" / "code").read_bytes() == b"code" * 1000 and not (folder / carried.FILES).exists()


def test_wheels_of_another_python_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "wheels").mkdir()
    own = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    for tag in ("cp27-cp27mu-linux_x86_64", f"{own}-{own}-linux_x86_64"):
        with zipfile.ZipFile(tmp_path / "wheels" / f"not_there_{tag[:4]}-1-{tag}.whl", "w") as wheel:
            wheel.writestr(f"not_there_{tag[:4]}.py", "")
    assert carried.add_wheels(tmp_path, {"not-there-cp27": "not_there_cp27", f"not-there-{own[:4]}": f"not_there_{own[:4]}"}) == [
        "not-there-cp27"
    ]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_bare_python_runs_on_carried_wheels(tmp_path: Path) -> None:
    """As far as "no GPU here", which takes numpy, msgspec and the driver's bindings."""
    pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
    folder = prepared_folder(tmp_path / "prepared", [])
    for name in carried.BENCH:
        pack_wheel(name, folder / "wheels")
    python = bare_python(tmp_path / "bare")
    for _ in range(2):  # unpacked, then found
        result = run([*python, "tests.bench.gpu", "--prepared", str(folder)])
        assert result.returncode == 1 and "no NVIDIA driver" in result.stderr and len(result.stderr.splitlines()) == 1


def test_parts_are_ordered_by_worth_and_fit() -> None:
    names = [f"{name}.{quant}.cuda-sm90" for name, quant in gpu.MODELS]
    parts = gpu.parts_of(names, quick=False)
    order = [part.name for part in parts]
    assert order[0] == "sanitizer memcheck" and order[1] == "self-tests"
    assert parts[0].limit < 60, "the first result is there within a minute"
    first = order.index(f"model {names[0]}")
    assert order[first + 1] == "torch.compile 0.6b x1"
    assert sorted(order) == sorted({*order}) and {f"model {name}" for name in names} < set(order)
    assert gpu.LIMIT_SECONDS <= 540
    assert not any("torch" in name or "sanitizer" in name for name in (p.name for p in gpu.parts_of(names, quick=True)))


def test_a_part_that_dies_or_hangs_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it had found until then is kept."""
    report = gpu_report.Report(path=tmp_path / "gpu.json")
    found = json.dumps({"raw": {"a": 1}, "table": [["x", "1", ""]], "failed": []})
    for ending, limit, said in (("kill -ABRT $$", 60, "ended with -6"), ("exec sleep 60", 3, "stopped after 3 s")):
        script = tmp_path / f"python{limit}"
        script.write_text(f"#!/bin/sh\nfor last; do :; done\necho '{found}' >\"$last\"\n{ending}\n")
        script.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(script))
        gpu.run_part(gpu.Part("bad", 0, limit), limit, tmp_path, report)
        assert report.failed[-1] == f"bad: {said}"
    assert gpu_report.load(tmp_path / "gpu.json") == gpu_report.Report({"a": 1}, [("x", "1", "")] * 2, report.failed)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_driver_that_runs_nothing_fails_every_part_and_ends_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole script, with the real bindings and the stand-in in C, whose kernels do nothing."""
    monkeypatch.setitem(gpu_models.SHAPES, "small", SHAPE)
    target = BY_NAME["cuda-sm90"]
    assert isinstance(target, GpuTarget)
    library = build_libcuda(tmp_path / "driver")
    models = [gpu_prepare.prepare_model("small", "f32", target, tmp_path / carried.MODELS_FOLDER).name, "lost.none.cuda-sm90"]
    folder = prepared_folder(tmp_path, models)
    gpu_prepare.prepare_ceilings(folder, target)
    write_launch_pack(folder / "tiny.gpu.none.fpk", "cuda", "sm_90")
    command = [sys.executable, "-m", "tests.bench.gpu", "--prepared", str(folder), "--output", str(tmp_path / "out")]
    result = run(command, LD_LIBRARY_PATH=str(library), LIBCUDA_LOG=str(tmp_path / "calls.txt"))
    assert result.returncode == 1, result.stderr
    found = gpu_report.load(tmp_path / "out" / "gpu.json")
    for part in gpu.parts_of(models, quick=False):
        assert any(line.startswith(part.name) for line in found.failed) or part.name == "ceilings", (part, found.failed)
    said = "\n".join(found.failed)
    assert "decode and prefill differ by nan" in said and "no self-test" in said
    assert {"copy_gb_per_s", "read_gb_per_s", "mma_bf16_tflops"} <= set(found.raw["ceilings"])
    assert all(line in result.stdout for line in found.failed) and "Fake GPU; raw numbers: " in result.stdout
