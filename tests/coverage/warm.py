"""What every trial loads and torch does only once, done before processes are forked."""

from __future__ import annotations

import torch

import tests.coverage.trial  # noqa: F401
from ferrum.graphs.frontend.torch_export import decompositions, import_module


class Warm(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(8, 4)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.embedding(tokens).cumsum(1)


import_module(Warm())
decompositions()
