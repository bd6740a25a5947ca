"""Model folders of random small models, as transformers saves them, and packs of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import transformers

from ferrum.codegen.driver import compile_model
from ferrum.codegen.options import CompileOptions
from ferrum.codegen.target import parse_target
from tests.once import once

LAST_GRAPH_STAGE = "fuse_paged"


def save(model: transformers.PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def traced(folder: Path, max_model_len: int = 0) -> Path:
    """The dumps of the graph of ``folder``, which is traced once."""
    options = CompileOptions(str(folder), max_model_len=max_model_len, stop_after=LAST_GRAPH_STAGE)
    return once(folder / f"dumps{max_model_len}", lambda part: compile_model(replace(options, dump_dir=part)))


def compile_folder(
    folder: Path,
    quant: str = "f32",
    target: str = "cpu",
    prove: bool = False,
    max_model_len: int = 0,
    output: Path | None = None,
    kv_dtype: str = "",
    activations: str = "auto",
    calibrate: str = "auto",
) -> Path:
    """Compile ``folder``; the graph is traced once and read from its dump afterwards."""
    output = output or folder / f"{target}.{quant}{kv_dtype}{activations}.{max_model_len}.fpk"
    base = CompileOptions(str(folder), target, quant, max_model_len, kv_dtype, activations, calibrate, prove=prove)
    return compile_model(replace(base, dump_dir=traced(folder, max_model_len), start_from="layout", output=output))


def kept_pack(folder: Path, quant: str = "f32", target: str = "cpu", kv_dtype: str = "", prove: bool = False) -> Path:
    """The same, compiled once in a run: ``folder`` and what a test gets from here are only read."""
    exact, kv = parse_target(target).name, CompileOptions(str(folder), quant=quant, kv_dtype=kv_dtype).kv
    path = folder / "packs" / f"{exact}.{quant}.{kv}{'.proved' if prove else ''}.fpk"
    return once(path, lambda part: compile_folder(folder, quant, exact, prove, output=part, kv_dtype=kv_dtype))
