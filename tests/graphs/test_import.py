"""The frontend: many spellings become one graph, what is unsupported is listed all at once, foreign programs are read too."""

from __future__ import annotations

import copy
import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch import Tensor, nn
from torch.export import Dim

from ferrum.errors import FerrumError
from ferrum.graphs.expressions import expression
from ferrum.graphs.findings import Finding, UnsupportedOps
from ferrum.graphs.frontend.torch_export import import_module, import_program
from ferrum.graphs.interpret import ArrayWeights, interpret
from ferrum.graphs.pipeline import run_pipeline
from ferrum.graphs.survey import survey
from ferrum.graphs.text import print_graph
from ferrum.graphs.verify import verify
from ferrum.graphs.weights import open_checkpoint
from tests.graphs.scratch import SPELLINGS, Scratch, Sizes, Spelling, build

NORMED = Sizes()
WINDOWED = Sizes(window=3, bias=True, qk_norm=False, tied=False)


@functools.cache
def finished_text(sizes: Sizes, spelling: Spelling) -> str:
    return print_graph(run_pipeline(import_module(build(sizes, spelling))), origins=False)


@pytest.mark.parametrize("sizes", [NORMED, WINDOWED], ids=["normed", "windowed"])
@pytest.mark.parametrize("name", sorted(SPELLINGS))
def test_one_text_for_all_spellings(name: str, sizes: Sizes) -> None:
    assert finished_text(sizes, SPELLINGS[name]) == finished_text(sizes, Spelling())


def test_one_text_for_layer_norms() -> None:
    texts = [finished_text(WINDOWED, Spelling(norm=norm)) for norm in ("layer", "layer_written_out")]
    assert texts[0] == texts[1] and texts[0].count(" layer_norm(") == 3 and "rms_norm(" not in texts[0]


LAYER_NORMS = [Spelling(norm="layer", mlp="gelu"), Spelling(norm="layer_unbiased", mlp="gelu_tanh")]


@pytest.mark.parametrize("spelling", [Spelling(), list(SPELLINGS.values())[5], *LAYER_NORMS])
def test_the_imported_graph_computes_what_torch_computes(spelling: Spelling) -> None:
    torch.manual_seed(3)
    module = build(WINDOWED, spelling, "cpu").double()
    tokens = torch.randint(0, WINDOWED.vocab, (2, 9))
    graph = verify(import_module(module))
    weights = ArrayWeights({name: p.detach().numpy() for name, p in module.named_parameters()})
    with torch.no_grad(), torch.device("cpu"):
        want = module(tokens).numpy()
    got = interpret(graph, {"tokens": tokens.numpy()}, weights, np.float64)[graph.outputs[0]]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


class Strange(nn.Module):
    """Three things that are not supported, and much that is."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.norm = Gamma()
        self.inner = Inverse()
        self.head = nn.Linear(8, 20)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.inner(self.norm(self.embedding(tokens)))
        return self.head(torch.cumprod(x, 1))


class Inverse(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.erfinv(x)


class Gamma(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.lgamma(x)


def test_everything_unsupported_is_listed_at_once() -> None:
    with torch.device("meta"), pytest.raises(UnsupportedOps) as caught:
        import_module(Strange(), name="strange")
    found = {f.what: f for f in caught.value.findings}
    assert set(found) == {"aten.lgamma.default", "aten.erfinv.default", "aten.cumprod.default"}
    assert found["aten.erfinv.default"].module == "inner"
    assert found["aten.lgamma.default"].module == "norm"
    assert found["aten.cumprod.default"].module == ""
    assert all(f.source.startswith("test_import.py:") for f in found.values())
    assert found["aten.erfinv.default"].nearest == "silu or gelu"
    assert found["aten.cumprod.default"].nearest == "exp of the cumsum of logarithms"
    line = str(caught.value)
    assert "\n" not in line and all(name in line for name in found)
    assert copy.copy(caught.value).findings == caught.value.findings


class Mixed(Scratch):
    """An activation that does not exist, a mask that is not causal, and a weight that the checkpoint lacks."""

    def __init__(self) -> None:
        super().__init__(Sizes(layers=2))
        self.layers[0].mlp.forward = lambda x: torch.erfinv(x)
        self.layers[1].self_attn.mask = lambda seq: torch.ones(seq, seq, dtype=torch.bool)


NOT_CAUSAL = "attention that is not causal, or with a bias, segments or a length"


def test_a_survey_finds_ops_masks_and_weights_together(tmp_path: Path) -> None:
    with torch.device("meta"):
        module = Mixed()
    save_file({"embed_tokens.weight": np.zeros((40, 24), np.float32)}, tmp_path / "model.safetensors")
    found = survey(lambda: import_module(module), open_checkpoint(tmp_path))
    ops = [(f.what, f.module) for f in found if f.source != "checkpoint"]
    assert ops == [("aten.erfinv.default", "layers.0.mlp"), (NOT_CAUSAL, "layers.1.self_attn")]
    weights = [f.what for f in found if f.source == "checkpoint"]
    assert "norm.weight [24] is missing" in weights and "layers.1.self_attn.q_proj.weight [64, 24] is missing" in weights
    assert not any("embed_tokens" in text for text in weights)


def test_a_survey_of_a_sound_model_is_empty() -> None:
    assert survey(lambda: import_module(build())) == ()


def test_a_survey_does_not_repeat_consequences() -> None:
    module = build()
    original = module.layers[0].self_attn.apply_linear
    module.layers[0].self_attn.apply_linear = lambda layer, x: torch.erfinv(original(layer, x))  # type: ignore[method-assign]
    assert {f.what for f in survey(lambda: import_module(module))} == {"aten.erfinv.default"}


def test_what_is_done_to_complex_numbers_besides_products_is_reported() -> None:

    class Complex(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(20, 8)

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.embedding(tokens)
            y = torch.view_as_complex(x.view(*x.shape[:-1], 4, 2))
            return torch.view_as_real(y * y).flatten(2) + torch.angle(y).sum(-1, keepdim=True)

    with torch.device("meta"):
        module = Complex()
    found = survey(lambda: import_module(module))
    assert [f.what for f in found] == ["aten.angle.default of complex numbers"]


class Layered(nn.Module):
    def __init__(self, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.layers = nn.ModuleList(Inverse() for _ in range(layers))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x)
        return x


def test_a_fault_in_every_layer_is_one_finding() -> None:
    with torch.device("meta"), pytest.raises(UnsupportedOps) as caught:
        import_module(Layered(5))
    assert [(f.what, f.module, f.count) for f in caught.value.findings] == [("aten.erfinv.default", "layers.0", 5)]


class Aside(Layered):
    """Computes what no output depends on, by an op without a form in the graph."""

    def forward(self, tokens: Tensor) -> Tensor:
        x: Tensor = self.embedding(tokens)
        x.cummax(1)
        return x


def test_what_no_output_depends_on_needs_no_form() -> None:
    assert [node.op for node in import_module(Aside(0)).nodes] == ["embedding"]


class Grouped(Layered):
    """Asks which group each token belongs to, where none belongs to any."""

    def forward(self, tokens: Tensor) -> Tensor:
        groups = torch.where(torch.zeros_like(tokens) == 1, torch.cumsum(torch.zeros_like(tokens), 1), -1)
        rows, places = torch.arange(tokens.shape[0])[:, None], torch.arange(tokens.shape[1])
        x: Tensor = self.embedding(tokens)
        return torch.where(groups[rows, places][..., None] >= 0, -x, x)


def test_any_place_of_one_number_is_that_number() -> None:
    graph = import_module(Grouped(0))
    assert "take" not in {node.op for node in graph.nodes}
    module, tokens = Grouped(0), np.arange(6).reshape(2, 3)
    weights = ArrayWeights({"embedding.weight": module.embedding.weight.detach().numpy()})
    found = interpret(import_module(module), {"tokens": tokens}, weights)
    np.testing.assert_allclose(next(iter(found.values())), module.embedding.weight.detach().numpy()[tokens], rtol=1e-6)


def test_in_place_ops_are_made_functional() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(20, 8)

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.embedding(tokens).clone()
            x.mul_(2.0).add_(1.0)
            return x

    module = InPlace().double()
    graph = import_module(module)
    assert [node.op for node in graph.nodes] == ["embedding", "mul_scalar", "add_scalar"]
    table = module.embedding.weight.detach().numpy()
    tokens = np.array([[3, 1]])
    got = interpret(graph, {"tokens": tokens}, ArrayWeights({"embedding.weight": table}), np.float64)[graph.outputs[0]]
    np.testing.assert_allclose(got, table[tokens] * 2 + 1)


def test_control_flow_on_values_is_one_line() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(20, 8)

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.embedding(tokens)
            return x + 1 if x.sum() > 0 else x

    with pytest.raises(FerrumError) as caught:
        import_module(Branch())
    assert caught.value.code == "export-failed"
    assert "\n" not in str(caught.value)


def test_a_saved_program_is_read() -> None:
    module = build(NORMED, device="cpu")
    dims = {0: Dim("b"), 1: Dim("s")}
    program = torch.export.export(module, (torch.zeros(2, 8, dtype=torch.int64),), dynamic_shapes=(dims,), strict=False)
    assert print_graph(run_pipeline(import_program(program)), origins=False) == finished_text(NORMED, Spelling())


def test_a_program_of_fixed_size_is_refused() -> None:
    program = torch.export.export(build(NORMED, device="cpu"), (torch.zeros(2, 8, dtype=torch.int64),), strict=False)
    with pytest.raises(UnsupportedOps, match="dynamic_shapes"):
        import_program(program)


def test_tied_weights_are_one_parameter() -> None:
    graph = import_module(build(Sizes(tied=True)))
    assert [p.name for p in graph.params if p.value.shape == (40, 24)] == ["embed_tokens.weight"]
    graph = import_module(build(Sizes(tied=False)))
    assert sorted(p.name for p in graph.params if p.value.shape == (40, 24)) == ["embed_tokens.weight", "lm_head.weight"]


def test_parameters_go_by_their_checkpoint_names() -> None:
    graph = import_module(build(), checkpoint_name=lambda name: f"model.{name}")
    weights = [p for p in graph.params if p.weight]
    assert all(p.name.startswith("model.") and p.source == expression.Tensor(p.name, p.shape) for p in weights)


def test_a_parameter_without_a_checkpoint_name_is_a_finding() -> None:
    names = {"norm.weight": "n"}
    with pytest.raises(UnsupportedOps, match="without a checkpoint name"):
        import_module(build(), checkpoint_name=lambda name: names[name])


def test_a_buffer_without_data_is_a_finding() -> None:
    module = build()
    module.constants = dict  # type: ignore[method-assign, assignment]
    with pytest.raises(UnsupportedOps, match="buffer inv_freq without data"):
        import_module(module)


def test_attention_that_cannot_be_paged_is_named() -> None:
    module = build()
    module.layers[0].self_attn.mask = lambda seq: torch.ones(seq, seq, dtype=torch.bool)  # type: ignore[method-assign]
    with pytest.raises(UnsupportedOps) as caught:
        run_pipeline(import_module(module))
    assert [(f.what, f.module) for f in caught.value.findings] == [(NOT_CAUSAL, "layers.0.self_attn")]


def test_attention_without_rope_stays_apart() -> None:
    module = build()
    module.rope_tables = lambda seq: (torch.ones(seq, 16), torch.zeros(seq, 16))  # type: ignore[method-assign]
    assert "paged_attend" in {node.op for node in run_pipeline(import_module(module)).nodes}


def test_findings_are_grouped_by_thing_and_line() -> None:
    findings = [Finding("a", f"l.{i}", "f.py:1", "b") for i in range(3)]
    error = UnsupportedOps([*findings, Finding("a", "m", "f.py:2", "b")], "model x")
    assert [(f.module, f.count) for f in error.findings] == [("l.0", 3), ("m", 1)]
    assert "(3 times)" in str(error)
