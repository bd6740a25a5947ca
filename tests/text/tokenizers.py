"""Small tokenizers of the kinds that models have, made here: byte-level BPE, and SentencePiece-like with byte fallback."""

from __future__ import annotations

import json
from functools import cache

from ferrum.text.tokenizer import Tokenizer, byte_alphabet

BLOCK = "\N{LOWER ONE EIGHTH BLOCK}"
WORDS = [
    "the",
    "cat",
    "s",
    "at",
    "on",
    "mat",
    "Hello",
    "wor",
    "ld",
    "!",
    "é",
    "日本",
    "<",
    "think",
    ">",
    "/",
    "tool_call",
    "{",
    "}",
]


def added(token_id: int, content: str, special: bool) -> dict[str, object]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token_id, "content": content, "special": special, **flags}


@cache
def byte_level() -> Tokenizer:
    """All 256 bytes, a few merged words, a special and a visible added token."""
    spelling = {byte: char for char, byte in byte_alphabet().items()}
    pieces = [spelling[b] for b in range(256)]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        raw = word.encode()
        done = spelling[raw[0]]
        for byte in raw[1:]:
            if (done, spelling[byte]) not in merges:
                merges.append((done, spelling[byte]))
                pieces.append(done + spelling[byte])
            done += spelling[byte]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    special = [added(len(vocab), "<|end|>", True), added(len(vocab) + 1, "<tool>", False), added(len(vocab) + 2, "<|tag|>", True)]
    model = {"type": "BPE", "vocab": vocab, "merges": [" ".join(m) for m in merges], "byte_fallback": False}
    return load({"added_tokens": special, "pre_tokenizer": level, "decoder": level, "model": model})


@cache
def sentence_piece() -> Tokenizer:
    """Spaces as U+2581, bytes as ``<0x00>``, the first space of a text dropped: Llama 2's form."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), BLOCK]
    pieces += [*"abcdehlmnorstuwHT!?é日", *(BLOCK + w for w in ("the", "cat", "mat", "Hello")), "the", "cat", "ll", "日本"]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    merges: list[str] = []
    steps: list[dict[str, object]] = [
        {"type": "Replace", "pattern": {"String": BLOCK}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]
    normal = [{"type": "Prepend", "prepend": BLOCK}, {"type": "Replace", "pattern": {"String": " "}, "content": BLOCK}]
    return load(
        {
            "added_tokens": [added(0, "<unk>", True), added(1, "<s>", True), added(2, "</s>", True)],
            "normalizer": {"type": "Sequence", "normalizers": normal},
            "decoder": {"type": "Sequence", "decoders": steps},
            "model": {"type": "BPE", "vocab": vocab, "merges": merges, "byte_fallback": True, "unk_token": "<unk>"},
        }
    )


def load(parts: dict[str, object]) -> Tokenizer:
    return Tokenizer(json.dumps({"version": "1.0", **parts}).encode())
