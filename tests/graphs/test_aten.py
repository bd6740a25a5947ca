"""Every way into the graph computes what torch computes, for any sizes of batch and seq."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from ferrum.graphs.frontend.torch_export import import_module
from ferrum.graphs.interpret import ArrayWeights, interpret
from ferrum.graphs.ir import Graph
from ferrum.graphs.text import parse_graph, print_graph
from ferrum.graphs.verify import verify

WIDTH, ROWS = 12, 20
Case = Callable[[Tensor], Tensor]


def places(x: Tensor, below: int) -> Tensor:
    """Numbers from 0 up to ``below`` that depend on x."""
    return (x * 7).floor().long().remainder(below)


def conv(x: Tensor, groups: int, **options: int) -> Tensor:
    """Along the columns of each token, which are two channels of six."""
    weight = torch.linspace(-1, 1, 4 * (2 // groups) * 3, dtype=x.dtype).reshape(4, 2 // groups, 3)
    return F.conv1d(x.reshape(-1, 2, 6), weight, groups=groups, **options).reshape(*x.shape[:2], -1)  # type: ignore[call-overload, no-any-return]


def turned(x: Tensor) -> Tensor:
    """Pairs as complex numbers, turned by their place, doubled, and multiplied by themselves."""
    angle = torch.arange(x.shape[1])[:, None] * torch.linspace(0.1, 1, WIDTH // 2, dtype=x.dtype)
    table = torch.polar(torch.full_like(angle, 0.5), angle).unsqueeze(0)
    y = torch.view_as_complex(x.reshape(*x.shape[:-1], WIDTH // 2, 2)) * table * 2.0
    return torch.view_as_real(y * y).flatten(2)


def heads(x: Tensor) -> Tensor:
    return x.reshape(*x.shape[:2], 3, 4)


def weights(x: Tensor, *shape: int) -> Tensor:
    return torch.linspace(-1, 1, int(np.prod(shape)), dtype=x.dtype).reshape(shape)


def baddbmm(x: Tensor) -> Tensor:
    return torch.baddbmm(x, x, weights(x, 1, WIDTH, WIDTH).expand(x.shape[0], -1, -1), beta=0.5, alpha=2.0)


def assigned(x: Tensor) -> Tensor:
    y = x.clone()
    y[..., 2:5] = x[..., 7:10]
    y[..., 1] = 3.0
    y[..., ::4] = x[..., :3]
    y.mul_(2).add_(x)
    return y


def put(x: Tensor) -> Tensor:
    rows = torch.zeros(ROWS, WIDTH, dtype=x.dtype)
    at = torch.arange(0, ROWS, 3)
    rows[at] = torch.ones(7, WIDTH, dtype=x.dtype)
    return x + rows.index_add(0, at, torch.ones(7, WIDTH, dtype=x.dtype))[3]


CASES: Mapping[str, Mapping[str, Case]] = {
    "elements": {
        "tanh": torch.tanh, "relu": F.relu, "relu6": F.relu6, "softplus": F.softplus,
        "softplus of beta": lambda x: F.softplus(x, 2.0),
        "log_sigmoid": F.logsigmoid, "elu": F.elu, "leaky_relu": F.leaky_relu, "abs": torch.abs, "floor": torch.floor,
        "ceil": torch.ceil, "erf": torch.erf, "expm1": torch.expm1, "log1p": lambda x: torch.log1p(x.abs()),
        "log": lambda x: torch.log(x.abs() + 1), "clamp": lambda x: x.clamp(-0.5, 0.5), "clamp_min": lambda x: x.clamp(min=0.1),
        "clamp by tensors": lambda x: x.clamp(-x.abs(), x * 0 + 0.3), "maximum": lambda x: torch.maximum(x, x.flip(-1)),
        "minimum": lambda x: torch.minimum(x, x * x), "pow": lambda x: (x.abs() + 0.1).pow(x), "remainder": lambda x: x % 0.7,
        "floor_divide": lambda x: x // 0.3, "rounded": lambda x: torch.div(x, x.abs() + 0.2, rounding_mode="floor"),
        "squared relu": lambda x: F.relu(x).square(), "where": lambda x: torch.where(x > 0, x, -2.0),
        "mish": F.mish, "hardswish": F.hardswish,
    },
    "axes": {
        "sum of two": lambda x: x.reshape(*x.shape[:2], 3, 4).sum((-1, -2), keepdim=True).flatten(2),
        "amax": lambda x: x.amax(-1, keepdim=True),
        "amin": lambda x: x.amin(-1, keepdim=True), "max": lambda x: x.max(-1).values[..., None] + x.max(-1).indices[..., None],
        "argmax": lambda x: x.argmax(-1, keepdim=True).to(x.dtype), "argmin": lambda x: x.argmin(-1, keepdim=True).to(x.dtype),
        "any": lambda x: (x > 1).any(-1, keepdim=True).to(x.dtype), "all": lambda x: (x > -1).all(-1, keepdim=True).to(x.dtype),
        "var": lambda x: x.var(-1, keepdim=True), "biased var": lambda x: x.var(-1, unbiased=False, keepdim=True),
        "logsumexp": lambda x: x.logsumexp(-1, keepdim=True), "log_softmax": lambda x: x.log_softmax(-1),
        "norm of order 1": lambda x: torch.norm(x, p=1, dim=-1, keepdim=True),
        "norm of order inf": lambda x: torch.linalg.vector_norm(x, ord=float("inf"), dim=-1, keepdim=True),
        "norm": lambda x: torch.linalg.vector_norm(x, dim=-1, keepdim=True), "cumsum": lambda x: x.cumsum(-1),
        "cumsum of tokens": lambda x: x.cumsum(1), "topk": lambda x: torch.cat([t.to(x.dtype) for t in x.topk(3)], -1),
        "least": lambda x: x.topk(3, largest=False).values, "sort": lambda x: torch.cat([t.to(x.dtype) for t in x.sort(-1)], -1),
        "argsort": lambda x: x.argsort(-1, descending=True).to(x.dtype),
        "layer_norm": lambda x: F.layer_norm(x, (WIDTH,)), "rms_norm": lambda x: F.rms_norm(x, (WIDTH,), eps=1e-5),
        "norm of two": lambda x: F.layer_norm(x.reshape(*x.shape[:2], 3, 4), (3, 4)).flatten(2),
    },
    "places": {
        "gather": lambda x: x.gather(-1, places(x, WIDTH)),
        "scatter": lambda x: x.scatter(-1, places(x[..., :1], WIDTH), x[..., 1:2]),
        "scatter of one": lambda x: torch.zeros_like(x).scatter(-1, x.topk(3).indices, 1.0),
        "scatter_add": lambda x: x.scatter_add(-1, places(x, WIDTH), x), "index": lambda x: x[..., torch.tensor([3, 3, 0])],
        "index from the end": lambda x: torch.cat([x[..., [-2]], x[..., [1, 2, 3]], x[..., [-1, 0]]], -1),
        "index of two": lambda x: x.reshape(*x.shape[:2], 3, 4)[:, :, torch.tensor([2, 0]), torch.tensor([1, 3])],
        "put where": lambda x: x.index_put((x > 0.5,), x.new_zeros(())),
        "index_select": lambda x: x.index_select(-1, torch.tensor([5, 1])), "flip": lambda x: x.flip(-1),
        "rows": lambda x: torch.linspace(0, 1, 30, dtype=x.dtype).reshape(10, 3)[places(x, 10)].flatten(2),
        "every second": lambda x: torch.cat([x[..., ::2], x[..., 1::2]], -1), "every fifth": lambda x: x[..., 1:11:5],
        "assigned": assigned, "put": put, "pad": lambda x: F.pad(x, (1, 2), value=3.0), "cut": lambda x: F.pad(x, (-1, 2)),
        "repeat": lambda x: x.repeat(1, 1, 2), "unfold": lambda x: x.unfold(-1, 4, 3).flatten(2),
        "roll": lambda x: x.roll(2, -1),
        "stacked": lambda x: torch.stack((x, -x), -1).flatten(2), "eye": lambda x: x @ torch.eye(WIDTH, dtype=x.dtype),
        "without elements": lambda x: torch.cat((x, x[..., :0]), -1),
        "tril": lambda x: x + torch.ones(12, 12, dtype=x.dtype).tril()[4],
    },
    "products": {
        "einsum": lambda x: torch.einsum("bsi,bsj->bsij", x, x).flatten(2),
        "einsum of heads": lambda x: torch.einsum("bshd,hde->bshe", heads(x), weights(x, 3, 4, 2)).flatten(2),
        "bmm": lambda x: torch.bmm(x, x.transpose(1, 2)).sum(-1, keepdim=True),
        "matmul of a vector": lambda x: (x @ weights(x, WIDTH))[..., None],
        "baddbmm": baddbmm,
        "conv": lambda x: conv(x, 1), "conv of groups": lambda x: conv(x, 2, padding=2, stride=2),
        "dilated": lambda x: conv(x, 1, dilation=2), "complex": turned,
    },
}  # fmt: skip


class All(nn.Module):
    """The results of a group of cases for the rows of a table, side by side."""

    def __init__(self, group: str) -> None:
        super().__init__()
        self.embedding, self.cases = nn.Embedding(ROWS, WIDTH, dtype=torch.float64), CASES[group]

    def parts(self, tokens: Tensor) -> list[Tensor]:
        x = self.embedding(tokens)
        return [case(x) for case in self.cases.values()]

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.cat(self.parts(tokens), -1)


@cache
def imported(group: str) -> tuple[All, Graph]:
    module = All(group).eval()
    graph = verify(import_module(module))
    assert parse_graph(print_graph(graph)) == graph
    return module, graph


@pytest.mark.parametrize("group", CASES)
@settings(max_examples=20, deadline=None)
@given(batch=st.integers(1, 3), seq=st.integers(1, 9), seed=st.integers(0, 99))
def test_the_graph_computes_what_torch_computes(group: str, batch: int, seq: int, seed: int) -> None:
    module, graph = imported(group)
    random = np.random.default_rng(seed)
    table, tokens = random.standard_normal((ROWS, WIDTH)), random.integers(0, ROWS, (batch, seq))
    with torch.no_grad():
        module.embedding.weight.copy_(torch.from_numpy(table))
        wanted = module.parts(torch.from_numpy(tokens))
    found = interpret(graph, {"tokens": tokens}, ArrayWeights({"embedding.weight": table}), np.float64)[graph.outputs[0]]
    ends = np.cumsum([part.shape[-1] for part in wanted])
    for name, part, want in zip(CASES[group], np.split(found, ends[:-1], axis=-1), wanted, strict=True):
        np.testing.assert_allclose(part, want.numpy(), rtol=1e-6, atol=1e-7, err_msg=name)
