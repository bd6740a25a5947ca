"""Packs that hold a tokenizer and a template but no real code: for the null device, or for a machine that is not this one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from tests.engine.null_pack import BLOCK_SIZE, BYTES_PER_BLOCK, EOS, TEMPLATE, VOCAB_SIZE, tokenizer_json
from tests.pack.helpers import MEMBERS, minimal_manifest, paged_state, step_record, write_minimal_pack


def write_pack(path: Path, *, template: str = TEMPLATE, text: dict[str, Any] | None = None, **target: Any) -> Path:
    """A pack of the null engine's vocabulary and a context of 200; ``text`` and ``target``: changes of its records."""
    changes = {"reasoning_start": "", "reasoning_end": "", **(text or {})}
    plain = minimal_manifest()
    replace = msgspec.structs.replace
    manifest = minimal_manifest(
        programs=[step_record(selftest="")],
        model=replace(plain.model, vocab_size=VOCAB_SIZE, max_model_len=200),
        target=replace(plain.target, **target),
        states=[paged_state(unit=BLOCK_SIZE, unit_bytes=BYTES_PER_BLOCK)],
        text=replace(plain.text, special_tokens={"eos_token": "<e>"}, eos_token_ids=[EOS], **changes),
    )
    members = {**MEMBERS, "tokenizer.json": tokenizer_json(), "chat_template.jinja": template.encode()}
    return write_minimal_pack(path, manifest=manifest, members=members)
