"""The plan of graphs that are unlike those of the families: layers that differ in their heads, residuals behind a norm."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from ferrum.codegen.backend import backend_of
from ferrum.codegen.driver import compile_targets
from ferrum.codegen.kernels.schedule import Schedule
from ferrum.codegen.options import CompileOptions
from ferrum.codegen.target import parse_target
from ferrum.graphs.frontend.torch_export import import_module
from ferrum.graphs.ir import Graph
from ferrum.graphs.passes import layout
from ferrum.graphs.pipeline import run_pipeline
from ferrum.graphs.text import parse_graph, print_graph
from ferrum.pack.launches import StateArg, Threads
from ferrum.pack.programs import kv_groups
from ferrum.pack.reader import open_pack
from tests.codegen.folders import LAST_GRAPH_STAGE
from tests.graphs.scratch import Sizes, build
from tests.models.test_parity import BASE

SIZES = Sizes(layers=2, bias=True, tied=False)
# (4 + 2 * 2) heads of 16 become (4 + 2 * 1): one KV head, with groups of four.
CHANGES = (
    ("num_heads=4, num_kv_heads=2", "num_heads=4, num_kv_heads=1"), ("[128, 24]", "[96, 24]"), ("[128]", "[96]"),
    ("[tokens, 128]", "[tokens, 96]"), ("[32, 24]", "[16, 24]"), ("[32]", "[16]"),
)  # fmt: skip


def unlike(graph: Graph) -> Graph:
    """The graph with fewer KV heads in its second layer."""
    lines = print_graph(graph).splitlines(keepends=True)
    for i, line in enumerate(lines):
        if line.startswith(("state keys.1", "state values.1")):
            lines[i] = line.replace("[2, 16]", "[1, 16]")
        if "layers.1.self_attn" in line:
            for old, new in CHANGES:
                line = line.replace(old, new)
            lines[i] = line
    return parse_graph("".join(lines))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with the dump of such a graph and random weights of its shapes."""
    folder, random = tmp_path_factory.mktemp("unlike"), np.random.default_rng(0)
    module = build(SIZES)
    graph = run_pipeline(import_module(module, name="unlike"), dump=folder / "dumps")
    next((folder / "dumps").glob(f"*-{LAST_GRAPH_STAGE}.txt")).write_text(print_graph(unlike(graph)))
    shapes = {name: list(p.shape) for name, p in module.named_parameters()}
    for name in ("k_proj.weight", "k_proj.bias", "v_proj.weight", "v_proj.bias"):
        shapes[f"layers.1.self_attn.{name}"][0] //= 2
    save_file({n: random.normal(0, 0.3, s).astype(np.float32) for n, s in shapes.items()}, folder / "model.safetensors")
    config = BASE | {"architectures": ["LlamaForCausalLM"], "vocab_size": SIZES.vocab, "rope_theta": 10000.0}
    (folder / "config.json").write_text(json.dumps(config))  # names and limits; the graph is what is compiled
    return folder


@pytest.mark.parametrize("name", ("cpu-avx2", "cuda-sm80", "metal-m1"))
def test_each_layer_has_its_place(folder: Path, name: str) -> None:
    graph = parse_graph(next((folder / "dumps").glob(f"*-{LAST_GRAPH_STAGE}.txt")).read_text())
    backend = backend_of(parse_target(name), "none", "bf16", {})
    laid_out = layout.run(graph, backend.policy())
    plan = backend.plan(laid_out, backend.select(laid_out))
    first, second = plan.kv.layers[0], plan.kv.layers[1]
    assert (first.kept.heads, second.kept.heads) == (2, 1) and first.nbytes == 2 * second.nbytes
    assert (first.offset, second.offset) == (0, first.nbytes) and plan.kv.groups == [[first, second]]
    found = [(call.layer, a.offset) for (call, _), launch in zip(plan.launched, plan.table.launches, strict=True)
             for a in launch.args if isinstance(a, StateArg)]  # fmt: skip
    assert set(found) == {(0, 0), (1, first.nbytes)}
    if name != "cpu-avx2":  # groups of two and of four heads fill their tiles with other numbers of tokens
        assert [k.tile_tokens for k in plan.kernels if isinstance(k, Schedule)] == [32, 16]


@pytest.mark.parametrize("target", ("cpu", *(pytest.param(name, marks=pytest.mark.slow) for name in ("cuda-sm80", "metal-m1"))))
def test_such_a_model_is_proven(folder: Path, target: str, tmp_path: Path) -> None:
    output = tmp_path / "x.fpk"
    options = CompileOptions(str(folder), target, "none", output=output, dump_dir=folder / "dumps", start_from="layout")
    with open_pack(compile_targets(options)[0]) as pack:  # compared with the interpreter before it is there
        assert [(state.layers, state.arrays[0].heads) for state in pack.manifest.states] == [(1, 2), (1, 1)]
        assert kv_groups(pack.manifest)[0].layers == 2


def test_rows_that_all_threads_read_get_a_barrier(folder: Path) -> None:
    """A norm is computed by every thread for itself when rows are few; a sum that takes its rows as shared must wait for them."""
    text = next((folder / "dumps").glob(f"*-{LAST_GRAPH_STAGE}.txt")).read_text()
    syncs = []
    for residual in ("embedding", "rms_norm"):
        graph = parse_graph(text.replace("o_proj.weight, embedding)", f"o_proj.weight, {residual})"))
        backend = backend_of(parse_target("cpu-x86_64"), "f32", "f32", {})
        laid_out = layout.run(graph, backend.policy())
        plan = backend.plan(laid_out, backend.select(laid_out))
        pairs = zip(plan.launched, plan.table.launches, strict=True)
        syncs.append(next(launch.on for (call, _), launch in pairs if call.output == "rms_norm"))
    assert [on.sync for on in syncs if isinstance(on, Threads)] == ["shared", "always"]
