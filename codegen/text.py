"""What a model folder says about text: tokenizer, chat template, special tokens, defaults; nothing of it is executed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ferrum.errors import FerrumError
from ferrum.pack.schema import TextRecord
from ferrum.text.tokenizer_file import read_tokenizer_file

_MAX_BYTES = 64 << 20
_GENERATION = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


@dataclass(frozen=True)
class TextFiles:
    """``tokenizer`` and ``template`` are empty when the model has none: such a pack takes token ids only."""

    record: TextRecord
    tokenizer: bytes
    template: str


def read_text(folder: Path) -> TextFiles:
    """Read the text side of a Hugging Face folder. Raises FerrumError for files that are not what they should be."""
    settings = _json(folder / "tokenizer_config.json")
    config, generation = _json(folder / "config.json"), _json(folder / "generation_config.json")
    tokenizer = _bytes(folder / "tokenizer.json")
    if tokenizer:
        read_tokenizer_file(tokenizer)
    template = _template(folder, settings)
    ids = _token_ids(tokenizer)
    eos_token, bos_token = _token_text(settings.get("eos_token")), _token_text(settings.get("bos_token"))
    eos = [*_ids(generation.get("eos_token_id")), *_ids(config.get("eos_token_id"))]
    if eos_token in ids:
        eos.append(ids[eos_token])
    bos = next(iter(_ids(generation.get("bos_token_id") or config.get("bos_token_id"))), ids.get(bos_token))
    record = TextRecord(
        bos_token=bos_token,
        eos_token=eos_token,
        bos_token_id=bos,
        eos_token_ids=sorted(set(eos)),
        add_bos=bool(settings.get("add_bos_token", False)),
        tool_format=_tool_format(template),
        reasoning_start="<think>" if "<think>" in template or "enable_thinking" in template else "",
        reasoning_end="</think>" if "</think>" in template or "enable_thinking" in template else "",
        generation=_generation(generation),
    )
    return TextFiles(record, plain_merges(tokenizer), template)


def plain_merges(tokenizer: bytes) -> bytes:
    """The same tokenizer with merges as ``"a b"`` instead of ``["a", "b"]``, which is read in three quarters of the time.

    Unchanged where that could mean something else: a part with a space, or one that starts like a comment of the old form.
    """
    try:
        value = json.loads(tokenizer)
        merges = value["model"]["merges"]
        if not merges or not all(_is_plain(merge) for merge in merges):
            return tokenizer
        value["model"]["merges"] = [" ".join(merge) for merge in merges]
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except (ValueError, RecursionError, KeyError, TypeError):  # no BPE, or no tokenizer: said when it is loaded
        return tokenizer


def _is_plain(merge: object) -> bool:
    if not isinstance(merge, list) or len(merge) != 2:
        return False
    return all(isinstance(part, str) and part and " " not in part and not part.startswith("#version") for part in merge)


def licence_of(folder: Path) -> str:
    """The licence that the model card's front matter names, or nothing."""
    try:
        lines = (folder / "README.md").read_text(encoding="utf-8", errors="replace")[:20000].splitlines()
    except OSError:
        return ""
    named = [line.split(":", 1)[1].strip() for line in lines[1:60] if line.startswith("license:")]
    return "".join(c for c in named[0] if c.isprintable())[:100] if named else ""


def _bytes(path: Path) -> bytes:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise FerrumError("config-unreadable", f"larger than {_MAX_BYTES >> 20} MiB", str(path), "check the download")
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise FerrumError(
            "config-unreadable", f"cannot be read: {error.strerror}", str(path), "check the file's permissions"
        ) from None


def _json(path: Path) -> dict[str, Any]:
    data = _bytes(path)
    if not data:
        return {}
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise FerrumError("config-unreadable", "is not a JSON object", str(path), "check that the model folder is complete")
    return value


def _template(folder: Path, settings: dict[str, Any]) -> str:
    separate = _bytes(folder / "chat_template.jinja")
    if separate:
        return separate.decode("utf-8", "replace")
    template = settings.get("chat_template") or _json(folder / "chat_template.json").get("chat_template")
    if isinstance(template, list):  # named templates: the one for tools knows everything that the default does
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default") or next(iter(named.values()), "")
    return template if isinstance(template, str) else ""


def _token_text(token: object) -> str:
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""


def _ids(value: object) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [v for v in values if isinstance(v, int) and not isinstance(v, bool) and v >= 0]


def _token_ids(tokenizer: bytes) -> dict[str, int]:
    """Ids of the added tokens, special ones included."""
    if not tokenizer:
        return {}
    try:
        added = json.loads(tokenizer).get("added_tokens", [])
        return {t["content"]: t["id"] for t in added}
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError):
        raise FerrumError(
            "bad-tokenizer", "is not a tokenizer", "tokenizer.json", "check that the model folder is complete"
        ) from None


def _tool_format(template: str) -> str:
    marks = (
        ("<function=", "qwen3-coder"),
        ("<tool_call>", "hermes"),
        ("[TOOL_CALLS]", "mistral"),
        ("python_tag", "llama3"),
        ("Environment: ipython", "llama3"),
    )
    return next((name for mark, name in marks if mark in template), "")


def _generation(values: dict[str, Any]) -> dict[str, float | int | bool]:
    """The model's own sampling defaults; a model that says it is not sampled is greedy."""
    if values.get("do_sample") is False:
        return {"temperature": 0.0}
    return {k: v for k in _GENERATION if isinstance(v := values.get(k), (int, float)) and not isinstance(v, bool)}
