"""Text to token ids and back, over the `tokenizers` library.

The library truncates when ``tokenizer.json`` says so, raises on lone surrogates and skips ids that it does not know. Here
truncation and padding are off, and the other two are errors that name the field.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property

import tokenizers

from ferrum.errors import FerrumError, one_line
from ferrum.text.checks import check_text
from ferrum.text.tokenizer_file import bad_tokenizer, read_tokenizer_file

_NO_ID = 1 << 32  # the library's ids are unsigned 32-bit numbers


def byte_alphabet() -> dict[str, int]:
    """The character that byte-level BPE writes for each byte (GPT-2, ``bytes_to_unicode``), inverted."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in set(printable)]
    table = {chr(b): b for b in printable}
    table.update({chr(256 + i): b for i, b in enumerate(others)})
    return table


_BYTE_OF = byte_alphabet()


class Tokenizer:
    """One model's tokenizer, from the bytes of its ``tokenizer.json``.

    ``longest_token``: characters of the vocabulary's longest, where that is known.

    Safe to use from several threads. Raises FerrumError for a file that is not a tokenizer.
    """

    def __init__(self, data: bytes | memoryview, *, longest_token: int | None = None) -> None:
        raw = bytes(data)
        self._file = read_tokenizer_file(raw)
        try:
            self._inner = tokenizers.Tokenizer.from_buffer(raw)
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:  # the library's Rust panics are not Exceptions
            raise bad_tokenizer(f"not a tokenizer: {error}") from None
        self._inner.no_truncation()
        self._inner.no_padding()
        added = self._inner.get_added_tokens_decoder()
        self.added: dict[int, str] = {i: t.content for i, t in added.items()}
        self.special_ids: frozenset[int] = frozenset(i for i, t in added.items() if t.special)
        self.byte_level = self._file.is_byte_level
        self._longest_token = longest_token
        self._bytes: dict[int, bytes] = {}

    @cached_property
    def vocab_size(self) -> int:
        """Ids are below this; added tokens count."""
        return self._inner.get_vocab_size(with_added_tokens=True)

    @cached_property
    def max_id(self) -> int:
        """The largest id that has a token; vocabularies may have holes."""
        return max(self.vocab().values(), default=-1)

    @cached_property
    def most_chars(self) -> int:
        """A token stands for no more characters of a text than this; 0: that is not known."""
        if not self._file.spells_everything:
            return 0
        longest = self._longest_token
        return self._file.composed * (max(map(len, self.vocab()), default=0) if longest is None else longest)

    def vocab(self) -> dict[str, int]:
        """Token (in the library's own spelling) to id, added tokens too. Made anew: it is large and seldom needed."""
        return self._inner.get_vocab(with_added_tokens=True)

    def token_id(self, token: str) -> int | None:
        return self._inner.token_to_id(token)

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of ``text``. ``special``: with the tokens that begin and end a sequence. Releases the GIL while at work.

        Raises FerrumError for a lone surrogate, for a text over ``MAX_TEXT_CHARS``, and for one with words that the
        vocabulary cannot spell.
        """
        check_text(text)
        try:
            ids: list[int] = self._inner.encode_batch_fast([text], add_special_tokens=special)[0].ids
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:  # a vocabulary without its unknown token, or one of the library's Rust panics
            what = f"the model's tokenizer cannot encode this: {one_line(str(error), 80)}"
            raise FerrumError("invalid-text", what, "prompt", "use words that the model knows") from None
        return ids

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """The text of ``ids``. Raises FerrumError for an id that is not a token id."""
        self.check_ids(ids)
        return self._inner.decode(list(ids), skip_special_tokens=skip_special)

    def check_ids(self, ids: Sequence[int]) -> None:
        """Raises FerrumError for an id below 0 or above every known one. Holes in the vocabulary decode to nothing."""
        if ids and (min(ids) < 0 or max(ids) > self.max_id):
            what = f"token ids must be from 0 to {self.max_id}"
            raise FerrumError("invalid-token", what, "tokens", "send ids of this model's vocabulary")

    def stop_ids(self, stops: Iterable[str]) -> tuple[int, ...]:
        """Ids of those stop strings that are special tokens: text never shows them, so they are found by id."""
        ids = (self.token_id(stop) for stop in stops)
        return tuple(i for i in ids if i in self.special_ids)

    def within(self, texts: Iterable[str]) -> frozenset[int]:
        """Special tokens that occur in one of ``texts``."""
        joined = "\0".join(texts)
        return frozenset(i for i in self.special_ids if self.added[i] in joined)

    def token_bytes(self, token: int) -> bytes:
        """The bytes that ``token`` stands for in the middle of a text; empty for an unknown id."""
        known = self._bytes.get(token)
        if known is None:
            known = self._bytes[token] = self._find_bytes(token)
        return known

    def token_text(self, token: int) -> str:
        """``token_bytes`` as text, with U+FFFD for what is not UTF-8 by itself."""
        return self.token_bytes(token).decode("utf-8", "replace")

    def _find_bytes(self, token: int) -> bytes:
        if token in self.added:
            return self.added[token].encode()
        spelled = self._inner.id_to_token(token) if 0 <= token < _NO_ID else None
        if spelled is None:
            return b""
        if self.byte_level:
            values = [_BYTE_OF.get(c) for c in spelled]
            return spelled.encode() if None in values else bytes(v for v in values if v is not None)
        if len(spelled) == 6 and spelled.startswith("<0x") and spelled.endswith(">"):
            return bytes.fromhex(spelled[3:5])
        return spelled.replace("\N{LOWER ONE EIGHTH BLOCK}", " ").encode()

    def decode_window(self, ids: list[int]) -> str:
        """``decode`` without the checks and with special tokens; for streams, whose ids come from the engine."""
        return self._inner.decode(ids, skip_special_tokens=False)
