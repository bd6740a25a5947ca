"""Everything about speed on one NVIDIA GPU in one command under nine minutes: ``make bench-gpu``.

Parts in the order of their worth, each in a process of its own with a time limit: what fails, hangs or does not fit any more
is recorded and the next one runs. The memory checker and the self-test of the built-in model come first, torch.compile right
after the first model. After every part raw numbers go to ``docs/bench/<date>-<gpu>/gpu.json``; the table is last.

``--prepare DIR`` makes the code where there is a compiler; ``--prepared DIR`` needs neither compiler nor torch, and takes
packages that this Python lacks from the wheels there.
"""

from __future__ import annotations

import argparse
import datetime
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench import gpu_report
from tests.bench.gpu_report import Report
from tests.gpu import carried

if TYPE_CHECKING:
    from ferrum.codegen.target import GpuTarget
    from ferrum.devices.cuda_driver import Gpu

FOLDER = Path("build/bench-gpu")
MODELS = (("0.6b", "none"), ("4b", "none"), ("8b", "int4-g128"), ("0.6b", "int4-g128"), ("8b", "none"))
LIMIT_SECONDS = 535
SANITIZER = ("memcheck", "racecheck", "synccheck", "initcheck")
BASELINES = (("0.6b", 1), ("0.6b", 32), ("4b", 1), ("4b", 32))


@dataclass(frozen=True)
class Part:
    """``needs``: seconds that must be left for it to begin; ``limit``: seconds after which it is stopped."""

    name: str
    needs: float
    limit: float


def parts_of(models: list[str], quick: bool) -> list[Part]:
    """The order of worth. ``quick``: without the memory checker and the baselines."""
    checks = [Part(f"sanitizer {tool}", 20, 40) for tool in SANITIZER if not quick]
    baselines = [Part(f"torch.compile {name} x{rows}", 40, 75) for name, rows in BASELINES if not quick]
    first, *others = [Part(f"model {name}", 30, 75) for name in models]
    return [
        *checks[:1], Part("self-tests", 5, 40), Part("ceilings", 10, 30), first, *baselines[:2], *others[:2], *baselines[2:],
        *([] if quick else [Part("torch kernels", 30, 60)]), *others[2:], *checks[1:],
    ]  # fmt: skip


def measure(folder: Path, output: Path | None, limit: float, quick: bool) -> int:
    """Run what was prepared in ``folder``; 0 when every part had a result."""
    prepared = carried.read(folder)
    if missing := carried.add_wheels(folder):
        print(carried.explain(missing, prepared, folder), file=sys.stderr)
        return 1
    from ferrum.devices.cuda_driver import choose_gpu, open_driver
    from ferrum.errors import FerrumError

    try:
        gpu = choose_gpu(open_driver(), prepared.arch, prepared.target, str(folder))
    except FerrumError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    place = output or Path("docs/bench") / f"{datetime.date.today().isoformat()}-{_file_name(gpu)}"
    place.mkdir(parents=True, exist_ok=True)
    report, end = Report(path=place / "gpu.json"), time.monotonic() + limit
    report.raw |= {"gpu": gpu.name, "target": prepared.target, "memory": gpu.memory, "packages": prepared.packages}
    report.save()
    for part in parts_of(prepared.models, quick):
        left = end - time.monotonic()
        if left < part.needs:
            report.fail(f"{part.name}: {left:.0f} s were left")
        else:
            run_part(part, min(left, part.limit), folder, report)
    print(f"\n{gpu.name}; raw numbers: {report.path}\n\n{report.text()}")
    return int(bool(report.failed))


def _file_name(gpu: Gpu) -> str:
    return re.sub(r"[^a-z0-9]+", "-", gpu.name.lower()).strip("-")


def run_part(part: Part, limit: float, folder: Path, report: Report) -> None:
    """A part in a process of its own; what it found is taken over, also when it ends badly."""
    assert report.path is not None
    found, started = report.path.with_name("part.json"), time.monotonic()
    found.unlink(missing_ok=True)
    command = [sys.executable, "-m", "tests.bench.gpu", "--prepared", str(folder), "--part", part.name, "--result", str(found)]
    end = ""
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
        if result.returncode:
            lines = (result.stderr or result.stdout).strip().splitlines() or [f"ended with {result.returncode}"]
            end = lines[-1].removeprefix("error: ")
    except subprocess.TimeoutExpired:
        end = f"stopped after {limit:.0f} s"
    report.take(gpu_report.load(found))
    found.unlink(missing_ok=True)
    if end:
        report.fail(f"{part.name}: {end}")
    print(f"{part.name}: {time.monotonic() - started:.1f} s {end and '(failed)'}".rstrip(), file=sys.stderr, flush=True)


def work(name: str, folder: Path, result: Path) -> int:
    """One part, in this process. What went wrong is the last line of stderr."""
    if missing := carried.add_wheels(folder):
        print(carried.explain(missing, carried.read(folder), folder), file=sys.stderr)
        return 1
    from ferrum.errors import FerrumError

    report = Report(path=result)
    report.raw["ceilings"] = gpu_report.load(result.with_name("gpu.json")).raw.get("ceilings", {})
    try:
        _work(name, folder, report)
    except FerrumError as error:
        report.save()
        print(f"error: {error}", file=sys.stderr)
        return 1
    report.save()
    return 0


def _work(name: str, folder: Path, report: Report) -> None:
    from ferrum.devices.cuda_driver import choose_gpu, open_driver
    from tests.bench import gpu_parts

    prepared = carried.read(folder)
    kind, _, rest = name.partition(" ")
    match kind:
        case "sanitizer":
            return sanitize(rest, folder, report)
        case "self-tests":
            return self_tests(folder, report)
        case "torch.compile":
            return gpu_parts.run_torch_model(report, rest.split(" x")[0], int(rest.split(" x")[1]))
        case "torch":
            return gpu_parts.run_torch_kernels(report)
    driver = open_driver()
    gpu = choose_gpu(driver, prepared.arch, prepared.target, str(folder))
    models = folder / carried.MODELS_FOLDER
    if kind == "ceilings":
        code = (folder / carried.CEILINGS_NAME).read_bytes()
        return gpu_parts.run_ceilings(report, driver, gpu, models / prepared.models[0], code)
    shape, quant = rest.removesuffix(f".{prepared.target}").rsplit(".", 1)
    return gpu_parts.run_model(report, driver, gpu, models / rest, shape, quant)


def self_tests(folder: Path, report: Report) -> None:
    """Every format of the built-in model. Raises the first FerrumError after all were tried."""
    from ferrum.errors import FerrumError
    from tests.bench import gpu_parts

    wrong: list[FerrumError] = []
    for pack in sorted(folder.glob("tiny.gpu.*.fpk")):
        try:
            gpu_parts.answers_itself(report, pack)
        except FerrumError as error:
            report.fail(f"self-test {pack.name}: {error.what}")
            wrong.append(error)
    if wrong:
        raise wrong[0]


def sanitize(tool: str, folder: Path, report: Report) -> None:
    """The built-in model's self-test under compute-sanitizer. Raises FerrumError for what it finds and where it is missing."""
    from ferrum.errors import FerrumError

    program = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if program is None:
        raise FerrumError("device-missing", "compute-sanitizer is not installed", "PATH", "")
    with tempfile.TemporaryDirectory(prefix="ferrum-sanitizer-") as temporary:
        command = [program, "--tool", tool, "--error-exitcode", "9", sys.executable, "-m", "tests.bench.gpu"]
        command += ["--prepared", str(folder), "--part", "self-tests", "--result", str(Path(temporary) / "part.json")]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    report.raw[f"sanitizer {tool}"] = result.stdout[-20000:]
    summary = [line.strip("= ") for line in result.stdout.splitlines() if "ERROR SUMMARY" in line or "error" in line.lower()]
    if result.returncode:
        raise FerrumError("device-failed", f"{tool}: {(summary or ['it failed'])[-1]}", program, "")
    report.row(f"compute-sanitizer {tool}", "nothing found")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.gpu", description=__doc__)
    parser.add_argument("--prepare", default="", metavar="DIR", help="only make what is carried to the machine with the GPU")
    parser.add_argument("--wheels", default="", metavar="VERSION", help="with --prepare: bring packages for this Python, as 3.12")
    parser.add_argument("--packages", nargs="*", default=(), metavar="NAME", help="with --wheels: only these (default: all)")
    parser.add_argument("--target", default="cuda", help="target of the code (default: this machine's GPU)")
    parser.add_argument("--models", default=",".join(f"{n}:{q}" for n, q in MODELS), help="NAME:QUANT with commas")
    parser.add_argument("--prepared", default="", metavar="DIR", help="measure what was made there; nothing is compiled")
    parser.add_argument("--output", type=Path, help="folder of gpu.json (default: docs/bench/<date>-<gpu>)")
    parser.add_argument("--seconds", type=float, default=LIMIT_SECONDS, help=f"time limit (default {LIMIT_SECONDS})")
    parser.add_argument("--quick", action="store_true", help="without the memory checker and the baselines")
    parser.add_argument("--part", default="", help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        return work(args.part, Path(args.prepared), args.result)
    if args.prepared:
        return measure(Path(args.prepared), args.output, args.seconds, args.quick)
    return _prepare_here(args)


def _prepare_here(args: argparse.Namespace) -> int:
    """Where there is a compiler: make what is missing and, unless only that was asked for, measure it."""
    from ferrum.errors import FerrumError
    from tests.bench.gpu_prepare import prepare_all

    folder = Path(args.prepare or FOLDER)
    models = [(name, quant) for name, quant in (text.split(":") for text in args.models.split(","))]
    try:
        made = prepare_all(folder, _gpu_target(args.target), models, args.wheels, args.packages)
    except FerrumError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if args.prepare:
        print(f"{folder}: {made.target}, {', '.join(made.models)}")
        print("packages: " + " ".join(f"{name}=={version}" for name, version in made.packages.items()))
        return 0
    return measure(folder, args.output, args.seconds, args.quick)


def _gpu_target(text: str) -> GpuTarget:
    from ferrum.codegen.target import GpuTarget, parse_target

    target = parse_target(text)
    assert isinstance(target, GpuTarget)
    return target


if __name__ == "__main__":
    sys.exit(main())
