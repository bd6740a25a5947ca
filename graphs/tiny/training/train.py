"""Trains the built-in model from nothing, in about an hour on two cores.

``python -m ferrum.graphs.tiny.training.train --run FOLDER`` stops at any time; the same command goes on from the last checkpoint.
``--export FOLDER`` writes a Hugging Face folder at the end.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from ferrum.graphs.models.registry import build
from ferrum.graphs.tiny.chat import Chat
from ferrum.graphs.tiny.data import training_chat
from ferrum.graphs.tiny.evaluate_torch import answers, pad
from ferrum.graphs.tiny.questions import accuracy, questions
from ferrum.graphs.tiny.training.export import SHAPE, export, model_config
from ferrum.graphs.tiny.training.tokenizer import make_tokenizer

SEED = 1
TOKENS_PER_STEP = 4096
POOL = 32  # batches that are drawn together, so that each holds chats of one length
DECAY = 0.35  # last part of the training in which the rate falls to zero
WARMUP = 100
LOG_EVERY, REPORT_EVERY = 25, 500  # steps
MUON_RATE, ADAM_RATE = 0.008, 0.003
AVERAGE = 0.998  # of the exponential average of the weights that is exported
SHARES = {
    "sum": 5.0, "difference": 6.0, "copy": 1.2, "reverse": 2.0, "sort": 2.4, "fact": 0.8, "recall": 1.5, "json": 2.2, "tool": 1.8,
    "tool_answer": 0.5, "talk": 0.2, "count": 0.3,
    "sum_beyond": 3.5, "below_zero": 1.5, "sort_mixed": 1.6, "spell": 3.5, "unable": 0.8,
}
SAMPLE = {
    "sum": 20,
    "difference": 20,
    "copy": 10,
    "reverse": 10,
    "sort": 15,
    "fact": 10,
    "recall": 10,
    "json": 10,
    "tool": 10,
    "tool_answer": 5,
}

Batch = tuple[Tensor, Tensor]


def batches(chat: Chat, rng: Random) -> Iterator[Batch]:
    """Endless (tokens [batch, seq], targets [batch, seq]); a target of -100 is not learned."""
    while True:
        rows: list[tuple[list[int], list[int]]] = []
        total = 0
        while total < TOKENS_PER_STEP * POOL:
            messages, tools = training_chat(rng, SHARES)
            ids = chat.encode(chat.render(messages, tools))
            said = chat.answer_mask(ids)
            rows.append((ids[:-1], [t if m else -100 for t, m in zip(ids[1:], said[1:], strict=True)]))
            total += len(ids)
        rows.sort(key=lambda row: len(row[0]))
        pool, start = [], 0
        while start < len(rows):
            stop = start + 1
            while stop < len(rows) and len(rows[stop][0]) * (stop + 1 - start) <= TOKENS_PER_STEP:
                stop += 1
            chosen = rows[start:stop]
            pool.append((pad([r[0] for r in chosen], chat.end), pad([r[1] for r in chosen], -100)))
            start = stop
        rng.shuffle(pool)
        yield from pool


def rate(step: int, steps: int) -> float:
    """Warm up, stay, then fall linearly to zero."""
    return min(1.0, (step + 1) / WARMUP, max(0.0, (steps - step) / (DECAY * steps)))


def optimizers(model: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for embeddings and norms. Source: Jordan et al., Muon, 2024."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and name.startswith("layers")]
    others = [p for name, p in model.named_parameters() if not (p.ndim == 2 and name.startswith("layers"))]
    return [
        torch.optim.Muon(matrices, lr=MUON_RATE, weight_decay=0.02, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


class Run:
    """Everything that a checkpoint holds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.chat = Chat(make_tokenizer())
        torch.manual_seed(SEED)
        self.model = build(model_config(), device="cpu").train()
        _initialise(self.model)
        self.average = {k: v.detach().clone() for k, v in self.model.named_parameters()}
        self.optimizers = optimizers(self.model)
        self.step, self.seconds = 0, 0.0

    @property
    def file(self) -> Path:
        return self.folder / "checkpoint.safetensors"

    def save(self) -> None:
        """Weights, averages and optimizer states, written beside and renamed."""
        from safetensors.torch import save_file

        tensors = {f"model.{k}": v.detach().clone() for k, v in self.model.named_parameters()}
        tensors |= {f"average.{k}": v for k, v in self.average.items()}
        for i, optimizer in enumerate(self.optimizers):
            for j, state in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{i}.{j}.{k}": torch.as_tensor(v) for k, v in state.items()}
        self.folder.mkdir(parents=True, exist_ok=True)
        part = self.file.with_suffix(".part")
        save_file(tensors, part, metadata={"step": str(self.step), "seconds": str(self.seconds)})
        part.replace(self.file)

    def load(self) -> None:
        from safetensors import safe_open

        with safe_open(self.file, "pt") as file:
            metadata = file.metadata()
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
        self.step, self.seconds = int(metadata["step"]), float(metadata["seconds"])
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(tensors[f"model.{name}"])
                self.average[name] = tensors[f"average.{name}"]
        for i, optimizer in enumerate(self.optimizers):
            states: dict[int, dict[str, Tensor]] = {}
            for key, value in tensors.items():
                if key.startswith(f"optimizer.{i}."):
                    _, _, j, name = key.split(".", 3)
                    states.setdefault(int(j), {})[name] = value
            optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})

    def averaged(self) -> nn.Module:
        """A copy with the averaged weights, rounded to bf16 as they are exported."""
        with torch.device("cpu"):
            copy = build(model_config(), device="cpu")
        copy.load_state_dict({k: v.bfloat16().float() for k, v in self.average.items()}, strict=False)
        return copy


def _initialise(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            scale = 0.02 if "embedding" in name else 0.5 / math.sqrt(parameter.shape[1])
            nn.init.normal_(parameter, std=scale * (0.5 if name.endswith(("out.weight", "down.weight")) else 1.0))


def train(run: Run, steps: int, checkpoint_every: int) -> None:
    data = batches(run.chat, Random(f"{SEED} {run.step}"))
    began, losses = time.monotonic() - run.seconds, []
    while run.step < steps:
        tokens, targets = next(data)
        for optimizer, highest in zip(run.optimizers, (MUON_RATE, ADAM_RATE), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = highest * rate(run.step, steps)
        # On a CPU the flash form is three times slower than plain products for chats this short.
        with sdpa_kernel(SDPBackend.MATH), torch.autocast("cpu", torch.bfloat16):
            logits = run.model(tokens)
        loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=-100)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
        for optimizer in run.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        run.step += 1
        keep = min(AVERAGE, (run.step + 1) / (run.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(run.average.values()), [p.detach() for p in run.model.parameters()], 1 - keep)
        losses.append(loss.item())
        run.seconds = time.monotonic() - began
        if run.step % LOG_EVERY == 0:
            print(f"step {run.step}/{steps} loss {sum(losses) / len(losses):.4f} {run.seconds / 60:.1f} min", flush=True)
            losses = []
        if run.step % checkpoint_every == 0 or run.step == steps:
            run.save()
        if run.step % REPORT_EVERY == 0:
            report(run, SAMPLE)


def report(run: Run, sample: dict[str, int] | None) -> None:
    problems = questions(sample)
    table, _ = accuracy(problems, answers(run.averaged(), run.chat, problems))
    print(" ".join(f"{name} {right}/{asked}" for name, (right, asked) in table.items()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3700)
    parser.add_argument("--run", type=Path, default=Path("build/tiny"))
    parser.add_argument("--checkpoint-every", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--export", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    run = Run(options.run)
    if run.file.exists():
        run.load()
    print(f"{sum(p.numel() for p in run.model.parameters()):,} parameters, from step {run.step}, {SHAPE}", flush=True)
    train(run, options.steps, options.checkpoint_every)
    report(run, None)
    if options.export:
        export(run.averaged(), options.export)


if __name__ == "__main__":
    main()
