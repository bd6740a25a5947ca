"""Small ONNX files by the package's own writer, and exports of tiny models."""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from ferrum.graphs.interpret import SourceWeights, interpret
from ferrum.graphs.ir import Graph
from ferrum.graphs.weights import open_checkpoint
from tests.graphs.tiny_models import tiny_model

TOKENS = np.array([[3, 1, 4, 15, 9, 26, 5, 35, 8], [2, 7, 18, 28, 1, 8, 2, 8, 4]])
RUNTIME = "com.microsoft"
IDS = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "seq"])


def node(op: str, inputs: Sequence[str], outputs: Sequence[str], domain: str = "", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs, outputs, name=f"the_{op}", domain=domain, **attributes)


def nodes(text: str) -> list[onnx.NodeProto]:
    """A line each: ``values, places = TopK(x, k) axis=-1``; before the op may stand its domain and a colon."""
    made = []
    for line in filter(None, map(str.strip, text.splitlines())):
        found = re.fullmatch(r"(.+?) = (?:([\w.]+):)?(\w+)\((.*?)\)(.*)", line)
        assert found, line
        given = dict(part.split("=") for part in found[5].split())
        attributes = {key: ast.literal_eval(value) for key, value in given.items()}
        inputs, outputs = ([name.strip() for name in part.split(",")] for part in (found[4], found[1]))
        made.append(node(found[3], inputs if found[4] else [], outputs, found[2] or "", **attributes))
    return made


def model(
    nodes: Sequence[onnx.NodeProto],
    tensors: dict[str, np.ndarray],
    inputs: Sequence[onnx.ValueInfoProto] = (IDS,),
    opset: int = 21,
    outputs: Sequence[str] = ("logits",),
) -> onnx.ModelProto:
    """With float outputs of any shape."""
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    kept = [numpy_helper.from_array(array, name) for name, array in tensors.items()]
    graph = helper.make_graph(list(nodes), "made", list(inputs), made, kept)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid(RUNTIME, 1)])


def put(folder: Path, raw: bytes | onnx.ModelProto, name: str = "model.onnx", config: dict[str, Any] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(raw if isinstance(raw, bytes) else raw.SerializeToString())
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder / name


class Plain(torch.nn.Module):
    """Token ids to logits, by the model's own code."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.inner(input_ids=input_ids, use_cache=False).logits


def plain(kind: str, folder: Path) -> tuple[Plain, Path, np.ndarray]:
    """A tiny model that computes attention as torch does, where it can, its folder, and its logits for ``TOKENS``."""
    inner = tiny_model(kind)
    inner.save_pretrained(folder)  # type: ignore[operator]
    if inner._supports_sdpa:
        inner.set_attn_implementation("sdpa")  # type: ignore[operator]
    module = Plain(inner).eval()
    with torch.no_grad():
        return module, folder, module(torch.tensor(TOKENS)).numpy()


def to_onnx(module: torch.nn.Module, path: Path, opset: int, external: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    dims = {0: torch.export.Dim("batch"), 1: torch.export.Dim("seq")}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module, (torch.zeros((2, 8), dtype=torch.int64),), dynamo=True, opset_version=opset, dynamic_shapes=(dims,),
            input_names=["input_ids"], output_names=["logits"], verbose=False,
        )  # fmt: skip
        assert program is not None
        program.save(str(path), external_data=external)
    return path


def to_pt2(module: torch.nn.Module, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    dims = {0: torch.export.Dim("batch"), 1: torch.export.Dim("seq")}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        tokens = torch.zeros((2, 8), dtype=torch.int64)
        torch.export.save(torch.export.export(module, (tokens,), dynamic_shapes=(dims,), strict=False), path)
    return path


def evaluated(graph: Graph, path: Path, tokens: np.ndarray = TOKENS) -> np.ndarray:
    with closing(open_checkpoint(path)) as checkpoint:
        return interpret(graph, {"tokens": tokens}, SourceWeights(checkpoint))[graph.outputs[0]]
