"""Filling in: the tokens by which a model is asked for the text between a prefix and a suffix, as its kind was trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ferrum.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Spelling:
    """The marks of a kind of models. ``suffix_first``: the suffix stands before the prefix. ``ends``: tokens that end the answer
    beside the model's own; ``repo`` and ``file``: before a repository's and a file's name."""

    prefix: str
    suffix: str
    middle: str = ""
    suffix_first: bool = False
    ends: tuple[str, ...] = ()
    repo: str = ""
    file: str = ""


SPELLINGS = (
    Spelling(  # Qwen2.5-Coder, Qwen3-Coder, CodeGemma
        "<|fim_prefix|>",
        "<|fim_suffix|>",
        "<|fim_middle|>",
        ends=("<|endoftext|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<|file_separator|>", "<|fim_prefix|>"),
        repo="<|repo_name|>",
        file="<|file_sep|>",
    ),
    Spelling(  # StarCoder, SantaCoder's successors, Granite
        "<fim_prefix>",
        "<fim_suffix>",
        "<fim_middle>",
        ends=("<|endoftext|>", "<fim_pad>", "<file_sep>", "<fim_prefix>"),
        repo="<repo_name>",
        file="<file_sep>",
    ),
    Spelling("<fim-prefix>", "<fim-suffix>", "<fim-middle>", ends=("<|endoftext|>",)),  # SantaCoder
    Spelling("▁<PRE>", "▁<SUF>", "▁<MID>", ends=("▁<EOT>",)),  # CodeLlama
    Spelling("<PRE>", "<SUF>", "<MID>", ends=("<EOT>",)),
    Spelling("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>", ends=("<｜end▁of▁sentence｜>",)),  # DeepSeek-Coder
    Spelling("[PREFIX]", "[SUFFIX]", suffix_first=True),  # Codestral
)


class Infill:
    """How one model is asked to fill in. ``bos``: the token id that begins a text, -1 for none."""

    def __init__(self, tokenizer: Tokenizer, spelling: Spelling, bos: int = -1) -> None:
        self._tokenizer = tokenizer
        self._spelling = spelling
        self._begin = [bos] if bos >= 0 else []

    @property
    def end_ids(self) -> tuple[int, ...]:
        found = (self._tokenizer.token_id(end) for end in self._spelling.ends)
        return tuple(i for i in found if i is not None)

    def tokens(self, prefix: str, suffix: str, extra: Sequence[tuple[str, str]] = ()) -> list[int]:
        """``extra``: other files, name and text; models that were not trained with them see none. Raises FerrumError."""
        s, begin = self._spelling, [*self._begin, *self._files(extra)]
        before = [*self._mark(s.prefix), *self._text(prefix)]
        after = [*self._mark(s.suffix), *self._text(suffix)]
        return [*begin, *after, *before] if s.suffix_first else [*begin, *before, *after, *self._mark(s.middle)]

    def _files(self, extra: Sequence[tuple[str, str]]) -> list[int]:
        """Each file after its mark and name; the one that is filled in has no name."""
        s = self._spelling
        if not extra or not self._mark(s.file):
            return []
        made = [*self._mark(s.repo), *self._text("repository\n")] if self._mark(s.repo) else []
        for name, text in extra:
            made += [*self._mark(s.file), *self._text(f"{name}\n{text}\n")]
        return [*made, *self._mark(s.file), *self._text("filename\n")]

    def _mark(self, token: str) -> list[int]:
        found = self._tokenizer.token_id(token) if token else None
        return [found] if found is not None else []

    def _text(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, special=False) if text else []


def find_infill(tokenizer: Tokenizer, bos_token: str = "") -> Infill | None:
    """None for a model whose tokenizer has no such tokens."""
    for spelling in SPELLINGS:
        marks = [m for m in (spelling.prefix, spelling.suffix, spelling.middle) if m]
        if all(tokenizer.token_id(m) is not None for m in marks):
            bos = tokenizer.token_id(bos_token) if bos_token else None
            begins = bos is not None and tokenizer.encode("a")[:1] == [bos]
            return Infill(tokenizer, spelling, bos if begins and bos is not None else -1)
    return None
