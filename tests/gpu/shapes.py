"""Small models of head sizes and groups that the built-in one does not have: packs for a GPU and the logits of float32."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

SHAPES = {
    "gqa1": {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 64, "hidden_size": 256},
    "gqa8": {"num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 128, "hidden_size": 320},
    "head96": {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 96, "hidden_size": 288},
}
QUANTS = ("none", "int8")
VOCAB_SIZE = 259


@dataclass(frozen=True)
class Shape:
    """A model's packs by format, and the logits of every prompt on the CPU in float32."""

    packs: dict[str, Path]
    logits: list[np.ndarray]


def prompts() -> list[list[int]]:
    random = np.random.default_rng(1)
    return [random.integers(0, VOCAB_SIZE, n).tolist() for n in (1, 2, 17, 64, 65, 200, 400)]


def make(folder: Path, name: str, target: str) -> Shape:
    """Compile a model of this shape and compute what it should say; needs torch. What is there already is taken."""
    place = folder / name
    if not (place / "logits.npz").exists():
        _compile(place, name, target)
    return find(folder, name)


def find(folder: Path, name: str) -> Shape:
    """What ``make`` left. Raises FileNotFoundError."""
    with np.load(folder / name / "logits.npz") as kept:
        logits = [kept[str(i)] for i in range(len(prompts()))]
    return Shape({quant: folder / name / f"{quant}.fpk" for quant in QUANTS}, logits)


def _compile(place: Path, name: str, target: str) -> None:
    import torch
    import transformers

    from ferrum import LLM
    from tests.codegen.folders import compile_folder, save

    torch.manual_seed(2)
    config = transformers.Qwen3Config(
        vocab_size=VOCAB_SIZE, intermediate_size=160, num_hidden_layers=1, max_position_embeddings=512, initializer_range=0.1,
        tie_word_embeddings=False, eos_token_id=None, bos_token_id=None, **SHAPES[name],
    )  # fmt: skip
    model = place.with_name(f"{name}.model")
    save(transformers.Qwen3ForCausalLM(config), model)
    place.mkdir(parents=True, exist_ok=True)
    for quant in QUANTS:
        compile_folder(model, quant, target, output=place / f"{quant}.fpk")
    with LLM(compile_folder(model, "f32")) as llm:
        np.savez(place / "logits.npz", **{str(i): llm.logits(tokens) for i, tokens in enumerate(prompts())})
