"""Greedy answers of the torch module, without a cache: enough to follow the training and to test the weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ferrum.graphs.models.blocks import Decoder
from ferrum.graphs.tiny.chat import Chat
from ferrum.graphs.tiny.data import Problem

MAX_NEW_TOKENS = 80


def load_model(folder: Path) -> Decoder:
    """A folder's model with its weights, computing in f32."""
    from safetensors.torch import load_file

    from ferrum.graphs.models.registry import build, checkpoint_names, load_config

    config = load_config(folder)
    model, foreign = build(config, device="cpu"), checkpoint_names(config)
    weights = load_file(folder / "model.safetensors")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[foreign(name)])
    return model


@torch.inference_mode()
def answers(model: nn.Module, chat: Chat, problems: Sequence[Problem], batch: int = 64) -> list[str]:
    """One greedy answer for each problem; an answer that does not end within MAX_NEW_TOKENS is marked as unended."""
    prompts = [chat.encode(chat.render(p.messages, p.tools, add_generation_prompt=True)) for p in problems]
    order = sorted(range(len(problems)), key=lambda i: (len(prompts[i]) + len(problems[i].answer), i))
    texts = [""] * len(problems)
    for start in range(0, len(order), batch):
        chosen = order[start:start + batch]
        for i, ids in zip(chosen, _greedy(model, [prompts[i] for i in chosen], chat.end), strict=True):
            ended = bool(ids) and ids[-1] == chat.end
            texts[i] = chat.tokenizer.decode(ids[:-1] if ended else ids) + ("" if ended else " <unended>")
    return texts


def _greedy(model: nn.Module, prompts: Sequence[list[int]], end: int) -> list[list[int]]:
    rows = [list(p) for p in prompts]
    active = list(range(len(rows)))
    for _ in range(MAX_NEW_TOKENS):
        logits = model(pad([rows[i] for i in active], end))
        last = torch.tensor([len(rows[i]) - 1 for i in active])
        best = logits[torch.arange(len(active)), last].argmax(-1).tolist()
        for i, token in zip(active, best, strict=True):
            rows[i].append(token)
        active = [i for i, token in zip(active, best, strict=True) if token != end]
        if not active:
            break
    return [row[len(prompt):] for row, prompt in zip(rows, prompts, strict=True)]


def pad(rows: Sequence[Sequence[int]], filler: int) -> Tensor:
    """int64 [len(rows), longest]; filler on the right cannot reach back through causal attention."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[filler] * (longest - len(row))] for row in rows])

