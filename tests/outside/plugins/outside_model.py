"""A model for other servers' tests: it says printable text of no meaning and never ends by itself.

Tests that count tokens need one that goes on until the limit, and none of them cares what it says. Every embedding and every row
of the head has a part along one direction, which makes a liking for some tokens; the rest is drawn.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from ml_dtypes import bfloat16
from safetensors.numpy import save_file

from ferrum.text.tokenizer import Tokenizer

END = "<|im_end|>"
TINY = Path(__file__).parents[3] / "graphs" / "tiny" / "model"
NEVER = -30.0
ENDINGS = {'"': 4.0, "}": 3.0, "]": 3.0, ",": 1.0}  # so that structured answers come to their end
ENDED = 3.5
BREAKS = ("\n", "\n\n")  # prompts of chats end with one
MAX_LENGTH = 8192
SAID_OF_CONTEXT = 0.4
NEVER_AT_ONCE = 4.0


def write_model(folder: Path, template: str = "", *, ends: bool = False) -> None:
    """A checkpoint in ``folder``. ``template``: the chat template; empty is that of the built-in model. ``ends``: it does end by
    itself, after a while."""
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads((TINY / "config.json").read_text())
    config |= {"tie_word_embeddings": False, "max_position_embeddings": MAX_LENGTH, "num_hidden_layers": 2}
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copy(TINY / "tokenizer.json", folder)
    settings = json.loads((TINY / "tokenizer_config.json").read_text())
    settings |= {"chat_template": template or settings["chat_template"], "bos_token": "<|endoftext|>"}  # some templates want one
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    save_file(weights(config, likings(config["vocab_size"], ends=ends)), folder / "model.safetensors")


def weights(config: dict[str, int], liked: np.ndarray) -> dict[str, np.ndarray]:
    """All tensors by name, in bfloat16. ``liked``: what is added to the logits, by token."""
    rng = np.random.default_rng(11)
    hidden, vocab, inner = config["hidden_size"], config["vocab_size"], config["intermediate_size"]
    heads, kv_heads, size = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    direction = np.ones(hidden)

    def drawn(rows: int, columns: int, scale: float) -> np.ndarray:
        return rng.normal(0, scale, (rows, columns))

    def across(rows: np.ndarray) -> np.ndarray:
        """``rows`` without their part along the common direction."""
        return rows - rows.mean(1, keepdims=True)

    made = {
        "model.embed_tokens.weight": 3 * direction + across(drawn(vocab, hidden, 1.0)),
        "lm_head.weight": liked[:, None] * direction / hidden * 1.2 + across(drawn(vocab, hidden, SAID_OF_CONTEXT)),
        "model.norm.weight": direction,
    }
    _never_at_once(made["lm_head.weight"], made["model.embed_tokens.weight"])
    for i in range(config["num_hidden_layers"]):
        at = f"model.layers.{i}."
        made |= {
            f"{at}input_layernorm.weight": direction,
            f"{at}post_attention_layernorm.weight": direction,
            f"{at}self_attn.q_norm.weight": np.ones(size),
            f"{at}self_attn.k_norm.weight": np.ones(size),
            f"{at}self_attn.q_proj.weight": across(drawn(heads * size, hidden, 0.06)),
            f"{at}self_attn.k_proj.weight": across(drawn(kv_heads * size, hidden, 0.06)),
            f"{at}self_attn.v_proj.weight": across(drawn(kv_heads * size, hidden, 0.12)),
            f"{at}self_attn.o_proj.weight": drawn(hidden, heads * size, 0.12),
            f"{at}mlp.gate_proj.weight": across(drawn(inner, hidden, 0.06)),
            f"{at}mlp.up_proj.weight": across(drawn(inner, hidden, 0.06)),
            f"{at}mlp.down_proj.weight": drawn(hidden, inner, 0.06),
        }
    return {name: value.astype(bfloat16) for name, value in made.items()}


def _never_at_once(head: np.ndarray, embedded: np.ndarray) -> None:
    """The end's row of ``head`` points away from a line break, after which an answer begins: no answer is empty."""
    tokenizer = Tokenizer((TINY / "tokenizer.json").read_bytes())
    end = tokenizer.encode(END, special=False)[0]
    for text in BREAKS:
        token = embedded[tokenizer.encode(text, special=False)[-1]]
        apart = token - token.mean()
        head[end] -= NEVER_AT_ONCE * apart / np.linalg.norm(apart)


def likings(vocab: int, *, ends: bool) -> np.ndarray:
    """A number a token: what is special, half a character or (without ``ends``) the end is never said."""
    tokenizer = Tokenizer((TINY / "tokenizer.json").read_bytes())
    made = np.full(vocab, NEVER)
    for token in range(min(vocab, tokenizer.vocab_size)):
        raw = tokenizer.token_bytes(token)
        if raw.isascii() and raw.decode().isprintable() and raw.strip() and not raw.startswith(b"<|"):
            made[token] = ENDINGS.get(raw.decode().strip(), 0.0)
    if ends:
        made[tokenizer.encode(END, special=False)] = ENDED
    return made
