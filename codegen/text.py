"""What a model folder says about text: tokenizer, chat template, special tokens, defaults; nothing of it is executed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ferrum.codegen.tokenizer import merged_settings, special_tokens, token_ids, whole_tokenizer
from ferrum.errors import FerrumError
from ferrum.pack.schema import TextRecord

_MAX_BYTES = 64 << 20
_GENERATION = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


@dataclass(frozen=True)
class TextFiles:
    """``tokenizer`` and ``template`` are empty when the model has none: such a pack takes token ids only.

    ``notes``: what the model's user should know, one line each.
    """

    record: TextRecord
    tokenizer: bytes
    template: str
    notes: tuple[str, ...] = ()


def read_text(folder: Path) -> TextFiles:
    """Read the text side of a Hugging Face folder. Raises FerrumError for files that are not what they should be."""
    settings = merged_settings(_json(folder / "tokenizer_config.json"), _json(folder / "special_tokens_map.json"))
    config, generation = _json(folder / "config.json"), _json(folder / "generation_config.json")
    tokenizer = _bytes(folder / "tokenizer.json")
    notes = []
    if tokenizer:
        tokenizer = whole_tokenizer(tokenizer, settings, _json(folder / "added_tokens.json"))
    else:
        notes.append(_no_tokenizer(folder))
    template = _template(folder, settings)
    ids = token_ids(tokenizer) if tokenizer else {}
    special = special_tokens(settings)
    eos = [*_ids(generation.get("eos_token_id")), *_ids(config.get("eos_token_id"))]
    eos += [ids[token] for token in (special.get("eos_token"),) if token in ids]
    bos = next(iter(_ids(generation.get("bos_token_id") or config.get("bos_token_id"))), ids.get(special.get("bos_token", "")))
    record = TextRecord(
        special_tokens=special,
        bos_token_id=bos,
        eos_token_ids=sorted(set(eos)),
        tool_format=_tool_format(template),
        reasoning_start="<think>" if "<think>" in template or "enable_thinking" in template else "",
        reasoning_end="</think>" if "</think>" in template or "enable_thinking" in template else "",
        generation=_generation(generation),
    )
    return TextFiles(record, tokenizer, template, tuple(notes))


def _no_tokenizer(folder: Path) -> str:
    others = [name for name in ("tokenizer.model", "vocab.json", "tekken.json") if (folder / name).exists()]
    made = f", only {others[0]}: AutoTokenizer.from_pretrained(...).save_pretrained(...) of transformers writes one" if others else ""
    return f"there is no tokenizer.json{made}; the pack takes token ids only and cannot be served"


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


def _ids(value: object) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [v for v in values if isinstance(v, int) and not isinstance(v, bool) and v >= 0]


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
