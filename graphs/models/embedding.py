"""What a folder of sentence-transformers says of its model: how the rows of a text's tokens become one, and what goes before it.

The folder lists its parts in ``modules.json``: a transformer, a pooling and perhaps a normalization, each with a file of its own.
What is said there and not done here is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ferrum.errors import FerrumError
from ferrum.graphs.infer_pool import HOWS
from ferrum.graphs.model_files import ModelFiles

MODULES, PROMPTS = "modules.json", "config_sentence_transformers.json"
# Of the transformer's own settings: by the kind of model that was first saved.
SETTINGS = tuple(
    f"sentence_{kind}_config.json" for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
# What the library calls each pooling, as a switch and as a name, → how ``pool`` calls it, and ``--pooling``.
SWITCHES: Mapping[str, str] = {
    "pooling_mode_cls_token": "first",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weighted_mean",
}
NAMES: Mapping[str, str] = {
    "cls": "first", "lasttoken": "last", "mean_sqrt_len_tokens": "mean_sqrt_len", "weightedmean": "weighted_mean",
    **{how: how for how in HOWS},
}  # fmt: skip

_STEP = "use another checkpoint of this model"
MAX_TOKENS = 1 << 30


@dataclass(frozen=True, slots=True)
class Embedding:
    """``pooling`` is one of ``HOWS``; ``normalize``: to length 1. ``max_seq_length`` 0: as long as the model's positions.

    ``prompts``, by name, go before texts of a kind (questions, documents); ``default_prompt`` names the one of texts of no kind.
    """

    pooling: str
    normalize: bool = True
    max_seq_length: int = 0
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str = ""


def embedding_of(files: ModelFiles, asked: str = "") -> Embedding | None:
    """How the folder's model embeds: as it says itself, or with the pooling that is ``asked`` for (rows are then normalized);
    None where neither is. Raises FerrumError (config-unsupported, config-unreadable, bad-option)."""
    modules = _value(files, MODULES, list)
    if asked and modules is not None:
        raise FerrumError("bad-option", f"{MODULES} of the folder says how it pools", "--pooling", "leave it out")
    if asked:
        return Embedding(NAMES[asked])
    return None if modules is None else _of_modules(files, modules)


def _of_modules(files: ModelFiles, modules: list[Any]) -> Embedding:
    parts = [_module(module) for module in modules]
    kinds = [kind for kind, _ in parts]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise _unsupported(f"the modules {', '.join(kinds) or 'none'}; Transformer, Pooling and Normalize are known", MODULES)
    if parts[0][1]:
        raise _unsupported(f"a transformer in the folder {parts[0][1]}", MODULES)
    limit, prompts, default = _max_seq_length(files), *_prompts(files)
    return Embedding(_pooling(files, f"{parts[1][1]}/config.json"), len(parts) == 3, limit, prompts, default)


def _module(module: Any) -> tuple[str, str]:
    """(the last part of its class's name, its folder)"""
    kind, path = (module.get(key) for key in ("type", "path")) if isinstance(module, dict) else (None, None)
    if not isinstance(kind, str) or not isinstance(path, str) or ".." in path.split("/") or path.startswith("/"):
        raise _unsupported("a module without a type and a folder of this one", MODULES)
    return kind.rpartition(".")[2], path


def _pooling(files: ModelFiles, name: str) -> str:
    values = _value(files, name, dict)
    if values is None:
        raise FerrumError("config-unreadable", "there is no such file", name, "check that the model folder is complete")
    if values.get("include_prompt", True) is not True:
        raise _unsupported("include_prompt = false", name)
    named = values.get("pooling_mode")
    given = named if isinstance(named, list) else [] if named is None else [named]
    on = [key for key, value in values.items() if key.startswith("pooling_mode_") and value] + [str(one) for one in given]
    found = [SWITCHES.get(key) or NAMES.get(key) for key in on]
    if len(found) != 1 or found[0] is None:
        raise _unsupported(f"the pooling {' with '.join(on) or 'of none'}; one of {', '.join(SWITCHES)} is known", name)
    return found[0]


def _max_seq_length(files: ModelFiles) -> int:
    """0: not said."""
    name, values = _settings(files)
    if values.get("do_lower_case"):
        raise _unsupported("do_lower_case = true", name)
    limit = values.get("max_seq_length")
    if limit is None:
        return 0
    if isinstance(limit, bool) or not isinstance(limit, int) or not 0 < limit <= MAX_TOKENS:
        raise _unsupported(f"max_seq_length = {str(limit)[:40]}", name)
    return limit


def _settings(files: ModelFiles) -> tuple[str, dict[str, Any]]:
    """The first file of the transformer's own settings that is there, with its name."""
    for name in SETTINGS:
        if (found := _value(files, name, dict)) is not None:
            return name, found
    return "", {}


def _prompts(files: ModelFiles) -> tuple[dict[str, str], str]:
    values = _value(files, PROMPTS, dict) or {}
    prompts, default = values.get("prompts") or {}, values.get("default_prompt_name") or ""
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise _unsupported("prompts that are not texts by their names", PROMPTS)
    if default and default not in prompts:
        raise _unsupported(f"the default prompt {str(default)[:40]!r}, which is none of its prompts", PROMPTS)
    return prompts, default


def _value(files: ModelFiles, name: str, kind: type) -> Any:
    """What a JSON file holds; None without it."""
    data = files.read(name)
    if data is None:
        return None
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, kind):
        raise FerrumError("config-unreadable", "is not what it should be", name, "check that the model folder is complete")
    return value


def _unsupported(what: str, where: str) -> FerrumError:
    return FerrumError("config-unsupported", f"unsupported: {what}", where, _STEP)
