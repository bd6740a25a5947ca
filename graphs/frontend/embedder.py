"""A model of `transformers` that gives a row for each token, as one that embeds: with its pooling and normalization behind it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ferrum.graphs.models.embedding import Embedding
from ferrum.graphs.numpy_pool import pooled

SMALLEST = 1e-12  # a shorter row is not made longer


@torch.library.custom_op("ferrum::pool", mutates_args=())
def pool(x: Tensor, how: str) -> Tensor:
    """[batch, seq, width] → the same shape, each row what its sequence is pooled to."""
    return torch.stack([torch.from_numpy(pooled(rows.numpy(), how)).expand(rows.shape) for rows in x]).contiguous()


@pool.register_fake
def _(x: Tensor, how: str) -> Tensor:
    return torch.empty_like(x)


class Embedder(nn.Module):
    """Token ids [batch, seq] to the embedding of each sequence, once for every token of it: [batch, seq, width]."""

    def __init__(self, model: nn.Module, embedding: Embedding) -> None:
        super().__init__()
        self.model = model
        self.embedding = embedding

    def forward(self, tokens: Tensor) -> Tensor:
        rows = self.model(input_ids=tokens, use_cache=False).last_hidden_state
        x = torch.ops.ferrum.pool(rows, self.embedding.pooling)
        if not self.embedding.normalize:
            return x
        return x / torch.clamp_min(torch.sqrt((x * x).sum(-1, keepdim=True)), SMALLEST)
