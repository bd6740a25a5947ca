"""A GGUF file's vocabulary as the ``tokenizer.json`` that the model had."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ferrum.errors import FerrumError
from ferrum.graphs.gguf.pre_tokenizers import PRE_TOKENIZERS
from ferrum.graphs.weights.gguf import Gguf
from ferrum.graphs.weights.safetensors import fault

Json = dict[str, Any]
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)
_SPACE = "▁"
_FILLER = re.compile(r"\[PAD\d+\]")  # what converters write for ids without a token
_DEFAULT_IDS = {
    "llama": {"bos": 1, "eos": 2, "unknown": 0},
    "bert": {"cls": 101, "seperator": 102, "unknown": 100, "padding": 0, "mask": 103},
    "t5": {"eos": 1, "unknown": 2, "padding": 0},
}
# Roles of the metadata → of tokenizer_config.json. (The format spells it "seperator".)
_ROLES = {
    "bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token", "seperator": "sep_token",
    "cls": "cls_token", "mask": "mask_token",
}  # fmt: skip
# What ends a turn, if the vocabulary has it as a token of control: older files name the end of a text only.
_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>")


@dataclass(frozen=True)
class Vocabulary:
    """A model's tokens in the order of their ids, the kind and the score of each."""

    model: Gguf
    kind: str
    tokens: list[str]
    types: list[int]
    scores: list[float]

    def flag(self, name: str, default: bool) -> bool:
        return bool(self.model.get(f"tokenizer.ggml.{name}", bool, default))

    def role(self, name: str) -> int | None:
        """The id of the token of a role; None when there is none."""
        found = self.model.get(f"tokenizer.ggml.{name}_token_id", int, _DEFAULT_IDS.get(self.kind, {}).get(name))
        return found if found is not None and 0 <= found < len(self.tokens) else None

    @cached_property
    def ids(self) -> dict[str, int]:
        """Ids that stand for nothing are left out; of tokens that are there twice the first counts."""
        found: dict[str, int] = {}
        for number, (token, kind) in enumerate(zip(self.tokens, self.types, strict=True)):
            if not (kind == UNUSED and _FILLER.fullmatch(token)):
                found.setdefault(token, number)
        return found

    def texts(self) -> dict[str, str]:
        """The special tokens as tokenizer_config.json names them."""
        roles = ((name, self.role(role)) for role, name in _ROLES.items())
        return {name: self.tokens[number] for name, number in roles if number is not None}

    def ends(self) -> list[int]:
        """Ids that end an answer."""
        given = [self.role("eos"), self.role("eot"), self.role("eom")]
        seen = [self.ids[text] for text in _ENDS if text in self.ids and self.types[self.ids[text]] == CONTROL]
        return sorted({number for number in (*given, *seen) if number is not None})


def vocabulary_of(model: Gguf) -> Vocabulary | None:
    """None when the file has none. Raises FerrumError (checkpoint-corrupt)."""
    kind = str(model.get("tokenizer.ggml.model", str, ""))
    tokens = model.texts("tokenizer.ggml.tokens")
    if not tokens or kind in ("", "no_vocab", "none"):
        return None
    types = _numbers(model, "token_type", len(tokens), NORMAL)
    return Vocabulary(model, kind, tokens, [int(t) for t in types], [float(s) for s in _numbers(model, "scores", len(tokens), 0)])


def _numbers(model: Gguf, key: str, count: int, default: int) -> np.ndarray:
    found = model.get(f"tokenizer.ggml.{key}", np.ndarray)
    if found is None:
        return np.full(count, default)
    if found.shape != (count,) or not np.isfinite(found).all():
        raise fault(model.path, f"metadata tokenizer.ggml.{key}", f"has not one finite number for each of {count} tokens")
    return found


def tokenizer_of(words: Vocabulary) -> bytes:
    """Raises FerrumError (tokenizer-unsupported) for a kind or a pre-tokenizer that is not known."""
    if words.kind not in _MAKERS:
        what = f"tokenizer.ggml.model = {words.kind[:40]!r} is not known"
        raise FerrumError("tokenizer-unsupported", what, words.model.path.name, f"known: {', '.join(_MAKERS)}")
    parts = _MAKERS[words.kind](words)
    value = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": _added(words), **parts}
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _added(words: Vocabulary) -> list[Json]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    wanted = (CONTROL, USER) if words.kind != "bert" else (CONTROL, USER, UNKNOWN)
    return [
        {"id": number, "content": token, **flags, "special": words.types[number] != USER}
        for token, number in words.ids.items()
        if words.types[number] in wanted and token
    ]


def _template(words: Vocabulary, first: str, last: str, bos: bool, eos: bool) -> Json | None:
    """What begins and ends a sequence."""
    begin, end = (words.role(role) if wanted else None for role, wanted in ((first, bos), (last, eos)))
    if begin is None and end is None:
        return None
    pieces: list[Json] = [{"Sequence": {"id": "A", "type_id": 0}}]
    if begin is not None:
        pieces.insert(0, {"SpecialToken": {"id": words.tokens[begin], "type_id": 0}})
    if end is not None:
        pieces.append({"SpecialToken": {"id": words.tokens[end], "type_id": 0}})
    names = {n: words.tokens[n] for n in (begin, end) if n is not None}
    used = {name: {"id": name, "ids": [n], "tokens": [name]} for n, name in names.items()}
    pair = [*pieces, {"Sequence": {"id": "B", "type_id": 1}}]
    return {"type": "TemplateProcessing", "single": pieces, "pair": pair, "special_tokens": used}


def _merges(words: Vocabulary) -> list[list[str]]:
    """The pairs in the file. A token may begin with a space, no second part does."""
    found = []
    for merge in words.model.texts("tokenizer.ggml.merges"):
        at = merge.find(" ", 1)
        if at < 0:
            raise fault(words.model.path, "metadata tokenizer.ggml.merges", f"has {merge[:40]!r}, which is no pair")
        pair = [merge[:at], merge[at + 1 :]]
        if all(part in words.ids for part in (*pair, "".join(pair))):
            found.append(pair)
    return found


def _bpe(words: Vocabulary, merges: list[list[str]], **options: Any) -> Json:
    model = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
        "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
    }  # fmt: skip
    return {**model, **options, "vocab": words.ids, "merges": merges}


def _gpt2(words: Vocabulary) -> Json:
    name = str(words.model.get("tokenizer.ggml.pre", str, ""))
    if name not in PRE_TOKENIZERS:
        what = f"tokenizer.ggml.pre = {name[:40]!r} is not known"
        raise FerrumError("tokenizer-unsupported", what, words.model.path.name, "use the model's safetensors")
    pre = PRE_TOKENIZERS[name]
    bos, eos = words.flag("add_bos_token", pre.bos), words.flag("add_eos_token", False)
    return {
        "normalizer": None,
        "pre_tokenizer": pre.as_json(),
        "post_processor": _template(words, "bos", "eos", bos, eos),
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": _bpe(words, _merges(words), ignore_merges=pre.whole),
    }


def _pieces(prefix: bool) -> tuple[Json, Json]:
    """Normalizer and decoder of a model whose tokens write spaces as ``▁``."""
    normal: list[Json] = [{"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}]
    decoder: list[Json] = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
    ]  # fmt: skip
    if prefix:
        normal.insert(0, {"type": "Prepend", "prepend": _SPACE})
        decoder.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "normalizers": normal}, {"type": "Sequence", "decoders": decoder}


def _llama(words: Vocabulary) -> Json:
    unknown = words.role("unknown")
    normalizer, decoder = _pieces(words.flag("add_space_prefix", True))
    return {
        "normalizer": normalizer,
        "pre_tokenizer": None,
        "post_processor": _template(words, "bos", "eos", words.flag("add_bos_token", True), words.flag("add_eos_token", False)),
        "decoder": decoder,
        "model": _bpe(
            words, _scored_merges(words), byte_fallback=BYTE in words.types, fuse_unk=True,
            unk_token=None if unknown is None else words.tokens[unknown],
        ),
    }  # fmt: skip


def _scored_merges(words: Vocabulary) -> list[list[str]]:
    """The pairs that make a piece of the vocabulary, those that make the best piece first."""
    usable = {token: number for token, number in words.ids.items() if words.types[number] in (NORMAL, USER)}
    found = [
        (words.scores[number], at, len(token) - at, token)
        for token, number in usable.items()
        for at in range(1, len(token))
        if token[:at] in usable and token[at:] in usable
    ]
    found.sort(key=lambda merge: merge[:3], reverse=True)
    return [[token[:at], token[at:]] for _, at, _, token in found]


def _gemma4(words: Vocabulary) -> Json:
    """Byte pairs over text whose spaces are written as ``▁``, not over bytes."""
    normalizer, decoder = _pieces(False)
    cut = {"type": "Split", "pattern": {"Regex": r"[^\n]+|[\n]+"}, "behavior": "Isolated", "invert": False}
    unknown = words.role("unknown")
    return {
        "normalizer": normalizer,
        "pre_tokenizer": cut,
        "post_processor": _template(words, "bos", "eos", words.flag("add_bos_token", True), words.flag("add_eos_token", False)),
        "decoder": decoder,
        "model": _bpe(
            words, _merges(words), byte_fallback=True, fuse_unk=True, unk_token=None if unknown is None else words.tokens[unknown]
        ),
    }


def _bert(words: Vocabulary) -> Json:
    """The format marks what begins a word, WordPiece what does not."""
    special = (CONTROL, USER, UNKNOWN, UNUSED)

    def spelled(token: str, kind: int) -> str:
        if token.startswith(_SPACE):
            return token[1:]
        return token if kind in special or (token.startswith("[") and token.endswith("]")) else f"##{token}"

    vocab: dict[str, int] = {}
    for token, number in words.ids.items():
        vocab.setdefault(spelled(token, words.types[number]), number)
    unknown = words.role("unknown")
    return {
        "normalizer": {
            "type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": _template(words, "cls", "seperator", True, True),
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece", "unk_token": words.tokens[unknown] if unknown is not None else "[UNK]",
            "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": vocab,
        },
    }  # fmt: skip


def _t5(words: Vocabulary) -> Json:
    charsmap = words.model.get("tokenizer.ggml.precompiled_charsmap", np.ndarray)
    normal: list[Json] = []
    if charsmap is not None:
        normal.append({"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap.tobytes()).decode()})
    tidy = words.flag("remove_extra_whitespaces", False)
    if tidy:
        normal.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
        normal.append({"type": "Strip", "strip_left": True, "strip_right": True})
    scheme = "always" if words.flag("add_space_prefix", True) else "never"
    spaces = {"type": "Metaspace", "replacement": _SPACE, "prepend_scheme": scheme, "split": tidy}
    return {
        "normalizer": {"type": "Sequence", "normalizers": normal},
        "pre_tokenizer": spaces,
        "post_processor": _template(words, "bos", "eos", words.flag("add_bos_token", False), words.flag("add_eos_token", True)),
        "decoder": spaces,
        "model": {
            "type": "Unigram", "unk_id": words.role("unknown"), "byte_fallback": BYTE in words.types,
            "vocab": [[token, score] for token, score in zip(words.tokens, words.scores, strict=True)],
        },
    }  # fmt: skip


_MAKERS: dict[str, Callable[[Vocabulary], Json]] = {
    "gpt2": _gpt2, "llama": _llama, "bert": _bert, "t5": _t5, "gemma4": _gemma4,
}  # fmt: skip


def templates_of(model: Gguf) -> Iterable[tuple[str, str]]:
    """Chat templates by name; the one without a name is "default"."""
    default = model.get("tokenizer.chat_template", str)
    if default:
        yield "default", str(default)
    for name in model.texts("tokenizer.chat_templates"):
        template = model.get(f"tokenizer.chat_template.{name}", str)
        if template:
            yield name, str(template)
