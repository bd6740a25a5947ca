"""Experts that a module of `transformers` goes through one after the other, in a loop over numbers that a trace does not have.

A literal table, method of a class → ours: the same by products whose weight each row picks by its expert. Experts behind the
interface of `transformers` need none of this (``registered.experts_function``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ferrum.graphs.frontend.registered import grouped_linear


def rows_of(hidden_states: Tensor, count: int) -> Tensor:
    """[tokens, width] → [tokens * count, width]: each token once for each of its experts."""
    tokens, width = hidden_states.shape
    return hidden_states.unsqueeze(1).expand(tokens, count, width).reshape(-1, width)


def summed(rows: Tensor, weights: Tensor) -> Tensor:
    """[tokens * count, width], weights [tokens, count] → [tokens, width]."""
    tokens, count = weights.shape
    return (rows * weights.reshape(-1, 1)).reshape(tokens, count, -1).sum(dim=1)


def dbrx_experts(self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """Matrices of all experts one under the other; the last one is stored as its input lies."""
    batch, shape = hidden_states.shape[0], (self.num_experts, self.ffn_hidden_size, self.hidden_size)
    gate, up, down = (weight.view(shape) for weight in (self.mlp.w1, self.mlp.v1, self.mlp.w2))
    group = top_k_index.reshape(-1)
    rows = rows_of(hidden_states.reshape(-1, self.hidden_size), top_k_index.shape[-1])
    rows = self.mlp.activation_fn(grouped_linear(rows, gate, group)) * grouped_linear(rows, up, group)
    return summed(grouped_linear(rows, down.transpose(1, 2), group), top_k_weights).view(batch, -1, self.hidden_size)


def longcat_experts(self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """The last experts compute nothing: a row that goes there stays as it is."""
    group = top_k_index.reshape(-1)
    rows = rows_of(hidden_states, top_k_index.shape[-1])
    if self.gate_up_proj is None:
        return summed(rows, top_k_weights)
    computes = group < self.num_routed_experts
    group = torch.where(computes, group, torch.zeros_like(group))
    gate, up = grouped_linear(rows, self.gate_up_proj, group).chunk(2, dim=-1)
    made = grouped_linear(self.act_fn(gate) * up, self.down_proj, group)
    return summed(torch.where(computes[:, None], made, rows), top_k_weights)


def jetmoe_routes(router: Any, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, then expert and weight of each pair [tokens, count], in the order of tokens instead of that of experts."""
    logits = router.layer(rows).float()
    best, group = logits.topk(router.top_k, dim=1)
    return logits, group, torch.softmax(best, dim=1)


def jetmoe_experts(self: Any, layer_input: Tensor) -> Tensor:
    rows = layer_input.reshape(-1, layer_input.shape[-1])
    _, group, weights = jetmoe_routes(self.router, rows)
    flat = group.reshape(-1)
    gate, up = grouped_linear(rows_of(rows, group.shape[-1]), self.input_linear.weight, flat).chunk(2, dim=-1)
    made = grouped_linear(self.activation(gate) * up, self.output_linear.weight, flat)
    return summed(made, weights).view(layer_input.shape) + self.bias


def jetmoe_queries(self: Any, layer_input: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Queries by as many experts as a token has: [batch, seq, count, width]."""
    batch, seq, width = layer_input.shape
    rows = layer_input.reshape(-1, width)
    logits, group, weights = jetmoe_routes(self.router, rows)
    made = grouped_linear(rows_of(rows, self.top_k), self.input_linear.weight, group.reshape(-1))
    return made.view(batch, seq, self.top_k, -1), logits, (group, weights)


def jetmoe_outputs(self: Any, layer_input: Tensor, routes: tuple[Tensor, Tensor]) -> Tensor:
    batch, seq, _count, width = layer_input.shape
    group, weights = routes
    made = grouped_linear(layer_input.reshape(-1, width), self.output_linear.weight, group.reshape(-1))
    return summed(made, weights).view(batch, seq, self.input_size) + self.bias


# By the name in the file of the model's modules.
TABLE: Mapping[str, Callable[..., Any]] = {
    "DbrxExperts.forward": dbrx_experts,
    "LongcatFlashExperts.forward": longcat_experts,
    "JetMoeMoE.forward": jetmoe_experts,
    "JetMoeMoA.map": jetmoe_queries,
    "JetMoeMoA.reduce": jetmoe_outputs,
}
