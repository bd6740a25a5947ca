"""What a machine with a GPU needs for the measurement and the tests, made where there is a compiler and no GPU.

Code of models of true shapes (their random weights are made on the device), the built-in model in every format, models of odd
shapes with the logits that they should have, the kernels of the ceilings, and the list of packages that must be there. With
``--wheels`` the packages themselves. All of it is a few dozen megabytes: see ``MOST_BYTES``.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from ferrum.codegen.backend import Backend, Built, backend_of
from ferrum.codegen.driver import compile_model
from ferrum.codegen.manifest import code_record, contract_of, make_manifest, program_record
from ferrum.codegen.options import CompileOptions
from ferrum.codegen.plan import Plan
from ferrum.codegen.target import GpuTarget
from ferrum.codegen.toolchains.gpu import find_gpu_toolchain
from ferrum.engine.load import load_model
from ferrum.errors import FerrumError
from ferrum.graphs.passes import layout
from ferrum.graphs.pipeline import STAGE_NAMES, load_graph
from ferrum.graphs.tiny.chat import MODEL_FOLDER
from ferrum.graphs.verify import verify
from ferrum.pack.schema import ModelRecord, TextRecord
from tests.bench.gpu_models import MAX_MODEL_LEN, SHAPES
from tests.bench.gpu_time import CEILINGS
from tests.gpu import carried, shapes
from tests.gpu.answers import CROWD, FEW, GREEDY, OPTIONS, QUESTIONS, asked, generate
from tests.gpu.carried import (
    ANSWERED,
    ANSWERS,
    CEILINGS_NAME,
    LIST,
    MODELS_FOLDER,
    PACKAGES,
    QUESTIONS_NAME,
    TINY,
    WHEELS,
    Carried,
)

MOST_BYTES = 64 << 20
GRAPHS = "graphs"  # of models in the folder of models, while it is filled
PLATFORMS = [f"manylinux_2_{n}_x86_64" for n in (35, 34, 31, 28, 27, 24, 17, 12, 5)] + ["manylinux2014_x86_64", "any"]


def prepare_model(name: str, quant: str, target: GpuTarget, folder: Path) -> Path:
    """Manifest, launch table and code of a model, in a folder that is named by them; made once."""
    made_at = folder / f"{name}.{quant}.{target.name}"
    if (made_at / "manifest.json").exists():
        return made_at
    options, backend, made = plan_of(SHAPES[name], quant, target, folder / GRAPHS / name)
    contract = contract_of(made, MAX_MODEL_LEN)
    code = backend.build(made, backend.render(made, contract), contract, None)
    record = ModelRecord(
        name=name, family="qwen3", num_parameters=0, vocab_size=made.vocab_size, max_model_len=MAX_MODEL_LEN, quant=quant
    )
    manifest = make_manifest(
        made,
        options,
        target,
        record,
        TextRecord(),
        program_record(made),
        [code_record(Built(target, made, code), target)],
        [],
        source_sha256="",
        has_text=False,
    )
    for member, data in code.members.items():
        path = made_at / member
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (made_at / "manifest.json").write_bytes(msgspec.json.encode(manifest))
    return made_at


def plan_of(config: dict[str, Any], quant: str, target: GpuTarget, model: Path) -> tuple[CompileOptions, Backend, Plan]:
    """The plan of a model that has no weights; its graph is traced once and kept in the folder ``model``."""
    model.mkdir(parents=True, exist_ok=True)
    (model / "config.json").write_text(json.dumps(config))
    options = CompileOptions(str(model), target=target.name, quant=quant, max_model_len=MAX_MODEL_LEN, dump_dir=model / "dump")
    dumps = sorted((model / "dump").glob(f"*-{STAGE_NAMES[-1]}.txt"))
    dump = dumps[0] if dumps else compile_model(replace(options, stop_after=STAGE_NAMES[-1]))
    backend = backend_of(target, quant, options.kv, {})
    graph = verify(layout.run(load_graph(dump), backend.policy()), "layout")
    return options, backend, backend.plan(graph, backend.select(graph))


def prepare_all(
    folder: Path, target: GpuTarget, models: list[tuple[str, str]], wheels: str = "", packages: Iterable[str] = ()
) -> Carried:
    """Everything for ``target``; ``wheels``: the Python, such as "3.12", for which ``packages`` (none: all) are brought along."""
    folder.mkdir(parents=True, exist_ok=True)
    carried.unpack(folder)
    names = [prepare_model(name, quant, target, folder / MODELS_FOLDER).name for name, quant in models]
    shutil.rmtree(folder / MODELS_FOLDER / GRAPHS, ignore_errors=True)
    prepare_ceilings(folder, target)
    for quant in TINY:
        compile_tiny(folder / f"tiny.gpu.{quant}.fpk", target.name, quant)
    prompts = {str(count): asked(count) for count in (QUESTIONS, CROWD, FEW)}
    (folder / QUESTIONS_NAME).write_text(json.dumps(prompts))
    for quant in ANSWERED:
        (folder / ANSWERS.format(quant)).write_text(json.dumps(cpu_answers(folder, quant)))
    for name in shapes.SHAPES:
        shapes.make(folder / "shapes", name, target.name)
        shutil.rmtree(folder / "shapes" / f"{name}.model", ignore_errors=True)
    made = Carried(target.name, target.arch, names, {name: version(name) for name in PACKAGES})
    (folder / LIST).write_text(json.dumps(asdict(made), indent=1) + "\n")
    if wheels:
        download(folder / WHEELS, wheels, {name: made.packages[name] for name in packages or made.packages})
    carried.pack(folder)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if size > MOST_BYTES:
        what = f"{size >> 20} MiB were made and {MOST_BYTES >> 20} may be carried"
        raise FerrumError("bad-option", what, str(folder), "name fewer models, or only packages that are missing there")
    return made


def prepare_ceilings(folder: Path, target: GpuTarget) -> None:
    (folder / CEILINGS_NAME).write_bytes(find_gpu_toolchain(target).compile(CEILINGS, target))


def cpu_answers(folder: Path, quant: str) -> list[list[int]]:
    """What the built-in model says on this CPU to the questions that a GPU is asked."""
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        path = compile_tiny(Path(temporary) / "tiny.fpk", "cpu", quant)
        model = load_model(path, trust=True, device_options=OPTIONS)
        try:
            return generate(model.engine, asked(QUESTIONS), GREEDY)[0]
        finally:
            model.close()


def compile_tiny(output: Path, target: str, quant: str) -> Path:
    """The built-in model; made once."""
    if not output.exists():
        compile_model(CompileOptions(str(MODEL_FOLDER), target=target, quant=quant, output=output, name="tiny"))
    return output


def download(folder: Path, python: str, packages: dict[str, str]) -> None:
    """Wheels for that Python on x86-64 Linux. Raises CalledProcessError with pip's own words on the screen."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--python-version", python, "--implementation", "cp", "-d", str(folder)]
    command += [word for platform in PLATFORMS for word in ("--platform", platform)]
    subprocess.run([*command, *(f"{name}=={number}" for name, number in packages.items())], check=True)
