"""Renders entries of the zoo with the compiler of a tree: ``python collect.py TREE MODELS OUT`` with the entries on stdin.

It runs inside of any revision, so it uses nothing but ``compile_model``, its options and the dumps, by the names of the stages
``import``, ``canonicalize``, ``plan`` and ``render``. Each entry leaves OUT/<name>/ with ``source.*`` and ``plan.json``, or
``error.txt``. The trace of a model in MODELS/<model>/traced is used again where it is there.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
import traceback
from pathlib import Path
from typing import Any


def main(tree: Path, models: Path, out: Path, entries: list[dict[str, str]]) -> None:
    sys.path[0] = str(tree)  # in front of what is installed, and in place of this folder
    import ferrum

    assert Path(ferrum.__file__).resolve().is_relative_to(tree.resolve()), f"{ferrum.__file__} is not in {tree}"
    for entry in entries:
        folder = out / entry["name"]
        folder.mkdir(parents=True)
        try:
            _render(models / entry["model"], folder, entry)
        except Exception:  # of any revision: said beside the entry, not the end of all others
            (folder / "error.txt").write_text(traceback.format_exc(limit=-3), encoding="utf-8")


def _render(model: Path, folder: Path, entry: dict[str, str]) -> None:
    from ferrum.codegen.driver import compile_model
    from ferrum.codegen.options import CompileOptions

    dump = folder / "dump"
    options: dict[str, Any] = {"model": str(model), "name": "zoo", "dump_dir": dump}
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    if not (model / "traced").is_dir():
        if "scratch" in config:
            _trace_scratch(model, config["scratch"])
        else:
            compile_model(CompileOptions(**options | {"dump_dir": model / "tracing"}, stop_after="import"))
        (model / "tracing").rename(model / "traced")
    shutil.copytree(model / "traced", dump)
    options |= {"target": _known(entry["target"]), "quant": entry["quant"], "kv_dtype": entry["kv"]}
    compile_model(CompileOptions(**options, start_from="canonicalize", stop_after="render"))
    for stage, name in (("render", "source"), ("plan", "plan")):
        made = next(dump.glob(f"*-{stage}.*"))
        shutil.move(made, folder / f"{name}{made.suffix}")
    shutil.rmtree(dump)


def _known(target: str) -> str:
    """The name that a target has in this tree: what runs on every GPU of 9.0 was once called by the features that only it has."""
    from ferrum.codegen.target import parse_target
    from ferrum.errors import FerrumError

    try:
        parse_target(target)
    except FerrumError:
        return f"{target}a"
    return target


def _trace_scratch(model: Path, wanted: dict[str, Any]) -> None:
    """The module of ``tests/graphs/scratch.py`` as a dump of the stage ``import``, and its weights."""
    import torch
    from safetensors.torch import save_file

    from ferrum.graphs.frontend.torch_export import import_module
    from ferrum.graphs.text import print_graph

    spec = importlib.util.spec_from_file_location("scratch", Path(__file__).parents[1] / "graphs" / "scratch.py")
    assert spec and spec.loader
    scratch = sys.modules["scratch"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(scratch)
    module = scratch.build(scratch.Sizes(**wanted["sizes"]), scratch.Spelling(**wanted["spelling"]))
    ones = {name: torch.ones(p.shape) for name, p in module.named_parameters()}
    save_file(ones, model / "model.safetensors")
    (model / "tracing").mkdir()
    (model / "tracing" / "01-import.txt").write_text(print_graph(import_module(module, name="zoo")), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), json.load(sys.stdin))
