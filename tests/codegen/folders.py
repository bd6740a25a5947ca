"""Model folders of random small models, as transformers saves them, and packs of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import transformers

from ferrum.codegen.driver import compile_model
from ferrum.codegen.options import CompileOptions

LAST_GRAPH_STAGE = "fuse_paged"


def save(model: transformers.PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def compile_folder(
    folder: Path,
    quant: str = "f32",
    target: str = "cpu",
    prove: bool = False,
    max_model_len: int = 0,
    output: Path | None = None,
    kv_dtype: str = "",
) -> Path:
    """Compile ``folder``; the graph is traced once and read from its dump afterwards."""
    output = output or folder / f"{target}.{quant}{kv_dtype}.{max_model_len}.fpk"
    dumps = folder / f"dumps{max_model_len}"
    base = CompileOptions(str(folder), target=target, quant=quant, kv_dtype=kv_dtype, max_model_len=max_model_len, dump_dir=dumps)
    if not any(dumps.glob(f"*-{LAST_GRAPH_STAGE}.txt")):
        compile_model(replace(base, stop_after=LAST_GRAPH_STAGE))
    return compile_model(replace(base, start_from="layout", output=output, prove=prove))
