"""Experts that modules of `transformers` go through in loops: ours compute the same, whatever number of rows each has."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ferrum.graphs.frontend.expert_loops import TABLE
from ferrum.graphs.frontend.registered import grouped_linear
from ferrum.graphs.frontend.torch_export import import_module
from ferrum.graphs.interpret import ArrayWeights, interpret
from ferrum.graphs.passes import canonicalize

BATCH, SEQ, WIDTH, EXPERTS, COUNT = 2, 9, 12, 4, 2


def drawn(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.4)
    return module


def routes(experts: int) -> tuple[Tensor, Tensor]:
    weights, index = torch.rand(BATCH * SEQ, experts).topk(COUNT, dim=-1)
    return index, weights


def dbrx() -> tuple[nn.Module, tuple[Any, ...]]:
    from transformers.models.dbrx.configuration_dbrx import DbrxFFNConfig
    from transformers.models.dbrx.modeling_dbrx import DbrxExperts

    config = DbrxFFNConfig(ffn_hidden_size=10, moe_num_experts=EXPERTS, moe_top_k=COUNT, hidden_size=WIDTH)
    return drawn(DbrxExperts(config)), (torch.randn(BATCH, SEQ, WIDTH), *routes(EXPERTS))


def longcat() -> tuple[nn.Module, tuple[Any, ...]]:
    from transformers import LongcatFlashConfig
    from transformers.models.longcat_flash.modeling_longcat_flash import LongcatFlashExperts

    config = LongcatFlashConfig(hidden_size=WIDTH, expert_ffn_hidden_size=10, n_routed_experts=EXPERTS, zero_expert_num=2)
    return drawn(LongcatFlashExperts(config)), (torch.randn(BATCH * SEQ, WIDTH), *routes(EXPERTS + 2))


def jetmoe(name: str) -> tuple[Any, tuple[Any, ...]]:
    from transformers import JetMoeConfig
    from transformers.models.jetmoe import modeling_jetmoe

    config = JetMoeConfig(
        hidden_size=WIDTH, intermediate_size=10, num_local_experts=EXPERTS, num_experts_per_tok=COUNT, kv_channels=4,
        num_key_value_heads=3,
    )  # fmt: skip
    return drawn(getattr(modeling_jetmoe, name)(config)), (torch.randn(BATCH, SEQ, WIDTH),)


@pytest.mark.parametrize(
    ("path", "case"),
    [
        ("DbrxExperts.forward", dbrx),
        ("LongcatFlashExperts.forward", longcat),
        ("JetMoeMoE.forward", lambda: jetmoe("JetMoeMoE")),
    ],
)
def test_experts_compute_what_those_of_transformers_do(path: str, case: Any) -> None:
    torch.manual_seed(3)
    module, given = case()
    with torch.no_grad():
        torch.testing.assert_close(TABLE[path](module, *given), module(*given), rtol=1e-4, atol=1e-5)


def test_queries_and_outputs_by_experts_are_those_of_transformers() -> None:
    torch.manual_seed(3)
    module, (x,) = jetmoe("JetMoeMoA")
    with torch.no_grad():
        wanted, logits, theirs = module.map(x)
        found, own_logits, ours = TABLE["JetMoeMoA.map"](module, x)
        torch.testing.assert_close((found, own_logits), (wanted, logits), rtol=1e-4, atol=1e-5)
        outputs = TABLE["JetMoeMoA.reduce"](module, found, ours)
        torch.testing.assert_close(outputs, module.reduce(wanted, theirs), rtol=1e-4, atol=1e-5)


class Stacked(nn.Module):
    """Matrices of three experts one under the other, which are read as they lie and turned."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.stack = nn.Embedding(7, 6), nn.Parameter(torch.randn(3 * 6, 6))

    def forward(self, tokens: Tensor) -> Tensor:
        rows, group = self.embedding(tokens).reshape(-1, 6), tokens.reshape(-1) % 3
        weight = self.stack.view(3, 6, 6)
        rows = grouped_linear(rows, weight, group)
        return grouped_linear(rows, weight.transpose(1, 2), group).reshape(*tokens.shape, 6)  # type: ignore[no-any-return]


def test_matrices_one_under_the_other_are_parts_of_one_weight() -> None:
    torch.manual_seed(3)
    module, tokens = Stacked(), torch.arange(6).reshape(2, 3)
    graph = canonicalize.run(import_module(module))
    read = [node.inputs[1] for node in graph.nodes if node.op == "grouped_linear"]
    assert len(read) == 2 and set(read) <= {param.name for param in graph.params}
    weights = ArrayWeights({name: parameter.detach().numpy() for name, parameter in module.named_parameters()})
    found = interpret(graph, {"tokens": tokens.numpy()}, weights)[graph.outputs[0]]
    np.testing.assert_allclose(found, module(tokens).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_rows_go_to_experts_that_compute_nothing_as_well() -> None:
    torch.manual_seed(3)
    module, (_, index, _) = longcat()
    assert (index >= module.num_routed_experts).any() and (index < module.num_routed_experts).any()
