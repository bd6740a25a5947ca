"""What a model folder says about text: tokenizer, chat template, special tokens, defaults; nothing of it is executed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ferrum.codegen.tokenizer import merged_settings, special_tokens, token_facts, whole_tokenizer
from ferrum.errors import FerrumError
from ferrum.graphs.model_files import ModelFiles, open_files
from ferrum.pack.schema import TextRecord
from ferrum.text.conversation import TEMPLATE_OPTIONS
from ferrum.text.reasoning import find_reasoning
from ferrum.text.template_process import TEMPLATE_MEMBERS, TemplateProcess
from ferrum.text.tokenizer_file import read_tokenizer_file
from ferrum.text.tool_probe import find_tool_format

_LARGEST = 1 << 31
_GENERATION = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


@dataclass(frozen=True)
class TextFiles:
    """``tokenizer`` and ``templates`` are empty when the model has none: such a pack takes token ids only.

    ``templates``: "default", and "tool_use" if conversations with tools have one of their own.

    ``notes``: what the model's user should know, one line each.
    """

    record: TextRecord
    tokenizer: bytes
    templates: dict[str, str]
    notes: tuple[str, ...] = ()


def read_text(path: Path) -> TextFiles:
    """The text side of a Hugging Face folder or a GGUF file. Raises FerrumError for files that are not what they should be."""
    files = open_files(path)
    settings = merged_settings(_json(files, "tokenizer_config.json"), _json(files, "special_tokens_map.json"))
    config, generation = _json(files, "config.json"), _json(files, "generation_config.json")
    tokenizer = files.read("tokenizer.json") or b""
    if tokenizer:
        read_tokenizer_file(tokenizer)
    notes = []
    if tokenizer:
        tokenizer = whole_tokenizer(tokenizer, settings, _json(files, "added_tokens.json"))
    else:
        notes.append(_no_tokenizer(path))
    named = _templates(files, settings)
    templates = {"default": named.get("default") or next(iter(named.values())), **named} if named else {}
    templates = {name: source for name, source in templates.items() if name in TEMPLATE_MEMBERS}
    ids, longest = token_facts(tokenizer) if tokenizer else ({}, 0)
    special = special_tokens(settings)
    eos = [*_ids(generation.get("eos_token_id")), *_ids(config.get("eos_token_id"))]
    eos += [ids[token] for token in (special.get("eos_token"),) if token in ids]
    bos = next(iter(_ids(generation.get("bos_token_id") or config.get("bos_token_id"))), ids.get(special.get("bos_token", "")))
    size = config.get("vocab_size")
    beyond = sorted({i for i in (*eos, bos) if i is not None and isinstance(size, int) and i >= size})
    if beyond:  # the tokens that end answers are often said twice, and then one of them is right
        notes.append(f"token id {', '.join(map(str, beyond))} is not below vocab_size ({size}) and ends or begins nothing")
    tool_format, options, note = _probe(templates, special)
    reasoning = find_reasoning("\n".join(templates.values())) if templates else ("", "")
    notes += [note] if note else []
    record = TextRecord(
        special_tokens=special,
        bos_token_id=None if bos in beyond else bos,
        eos_token_ids=sorted(set(eos) - set(beyond)),
        tool_format=tool_format,
        reasoning_start=reasoning[0],
        reasoning_end=reasoning[1],
        template_options=options,
        longest_token=longest,
        generation=_generation(generation),
    )
    return TextFiles(record, tokenizer, templates, tuple(notes))


def _no_tokenizer(folder: Path) -> str:
    others = [name for name in ("tokenizer.model", "vocab.json", "tekken.json") if (folder / name).exists()]
    only = f", only {others[0]}; AutoTokenizer.from_pretrained(…).save_pretrained(…) of transformers makes one" if others else ""
    return f"there is no tokenizer.json{only}; the pack takes token ids only and cannot be served"


def licence_of(path: Path) -> str:
    """The licence that the model card's front matter names, or nothing."""
    try:
        card = open_files(path).read("README.md") or b""
    except FerrumError:
        return ""
    lines = card.decode("utf-8", "replace")[:20000].splitlines()
    named = [line.split(":", 1)[1].strip() for line in lines[1:60] if line.startswith("license:")]
    return "".join(c for c in named[0] if c.isprintable())[:100] if named else ""


def _json(files: ModelFiles, name: str) -> dict[str, Any]:
    data = files.read(name)
    if not data:
        return {}
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise FerrumError("config-unreadable", "is not a JSON object", name, "check that the model folder is complete")
    return value


def _templates(files: ModelFiles, settings: dict[str, Any]) -> dict[str, str]:
    """Chat templates by name, from where `transformers` looks for them: files of their own before the settings."""
    named = {"default": files.read("chat_template.jinja")}
    for name in files.named("additional_chat_templates", ".jinja"):
        named[Path(name).stem] = files.read(name)
    found = {name: data.decode("utf-8", "replace") for name, data in named.items() if data}
    if found:
        return found
    template = settings.get("chat_template") or _json(files, "chat_template.json").get("chat_template")
    if isinstance(template, list):
        pairs = [(t.get("name"), t.get("template")) for t in template if isinstance(t, dict)]
        return {name: text for name, text in pairs if isinstance(name, str) and isinstance(text, str)}
    return {"default": template} if isinstance(template, str) and template else {}


def _ids(value: object) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [v for v in values if isinstance(v, int) and not isinstance(v, bool) and 0 <= v < 1 << 31]


def _probe(templates: dict[str, str], special: dict[str, str]) -> tuple[str, list[str], str]:
    """What the templates say: the tool format, the options that they look at, and a note or nothing. Raises FerrumError for a
    template that is not valid."""
    if not templates:
        return "", [], ""
    with TemplateProcess(templates, special) as template:
        options = sorted(option for option in TEMPLATE_OPTIONS if template.takes(option))
        tool_format, reason = find_tool_format(template)
    return tool_format, options, f"no tool format: {reason}" if reason else ""


def _generation(values: dict[str, Any]) -> dict[str, float | int | bool]:
    """The model's own sampling defaults; a model that says it is not sampled is greedy."""
    if values.get("do_sample") is False:
        return {"temperature": 0.0}
    numbers = {k: v for k in _GENERATION if isinstance(v := values.get(k), (int, float)) and not isinstance(v, bool)}
    for key, value in numbers.items():
        if not abs(value) <= _LARGEST:  # or no number at all
            what = f"{key} = {str(value)[:40]} is out of range"
            raise FerrumError("config-unsupported", what, "generation_config.json", "check that the model folder is complete")
    return numbers
