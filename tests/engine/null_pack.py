"""A pack that only the null device can use: sizes, and a tokenizer with one token per ASCII character."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec

from ferrum.pack.schema import TextRecord
from ferrum.text.tokenizer import byte_alphabet
from tests.pack.helpers import MEMBERS, minimal_manifest, paged_state, step_record, write_minimal_pack

EOS = 0
CHARS = [chr(c) for c in range(0x20, 0x7F)]
VOCAB_SIZE = len(CHARS) + 1
BYTES_PER_BLOCK = 256
BLOCK_SIZE = 4
TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def token(char: str) -> int:
    return CHARS.index(char) + 1


def tokens(text: str) -> list[int]:
    return [token(c) for c in text]


def text_of(ids: list[int]) -> str:
    return "".join(CHARS[i - 1] for i in ids if i != EOS)


def tokenizer_json() -> bytes:
    spelling = {byte: char for char, byte in byte_alphabet().items()}
    vocab = {"<e>": EOS} | {spelling[ord(c)]: token(c) for c in CHARS}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    added = {
        "id": EOS, "content": "<e>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True,
    }  # fmt: skip
    model = {"type": "BPE", "vocab": vocab, "merges": [], "byte_fallback": False}
    return json.dumps(
        {"version": "1.0", "added_tokens": [added], "pre_tokenizer": level, "decoder": level, "model": model}
    ).encode()


def write_null_pack(path: Path, tokenizer: bool = True, **text: object) -> Path:
    """A pack of ``VOCAB_SIZE`` tokens and a context of 200; ``text``: changes of its text record."""
    plain = minimal_manifest()
    manifest = minimal_manifest(
        programs=[step_record(selftest="")],
        required=[section for section in plain.required if tokenizer or section != "text"],
        model=msgspec.structs.replace(plain.model, vocab_size=VOCAB_SIZE, max_model_len=200),
        states=[paged_state(unit=BLOCK_SIZE, unit_bytes=BYTES_PER_BLOCK)],
        text=msgspec.structs.replace(TextRecord(special_tokens={"eos_token": "<e>"}, eos_token_ids=[EOS]), **text),
    )
    members = {**MEMBERS, "tokenizer.json": tokenizer_json(), "chat_template.jinja": TEMPLATE.encode()}
    if not tokenizer:
        del members["tokenizer.json"]
    return write_minimal_pack(path, manifest=manifest, members=members)
