"""Text to token ids and back, over the `tokenizers` library.

The library truncates when ``tokenizer.json`` says so, raises on lone surrogates and skips ids that it does not know. Here
truncation and padding are off, and the other two are errors that name the field.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property

import tokenizers

from ferrum.errors import FerrumError
from ferrum.text.tokenizer_file import bad_tokenizer, read_tokenizer_file

_NO_ID = 1 << 32  # the library's ids are unsigned 32-bit numbers
MAX_TEXT_CHARS = 64 * 1024 * 1024


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

    ``add_bos`` with ``bos_token_id``: ``encode`` with special tokens starts with it even if the file's own post-processor
    does not say so. Safe to use from several threads. Raises FerrumError for a file that is not a tokenizer.
    """

    def __init__(self, data: bytes | memoryview, *, bos_token_id: int | None = None, add_bos: bool = False) -> None:
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
        self._bos = bos_token_id if add_bos else None
        added = self._inner.get_added_tokens_decoder()
        self.added: dict[int, str] = {i: t.content for i, t in added.items()}
        self.special_ids: frozenset[int] = frozenset(i for i, t in added.items() if t.special)
        self.byte_level = self._file.is_byte_level
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
        """A token stands for no more characters of a text than this; 0: that is not known. Looks at the whole vocabulary."""
        if not self._file.spells_everything:
            return 0
        return self._file.composed * max(map(len, self.vocab()), default=0)

    def vocab(self) -> dict[str, int]:
        """Token (in the library's own spelling) to id, added tokens too. Made anew: it is large and seldom needed."""
        return self._inner.get_vocab(with_added_tokens=True)

    def token_id(self, token: str) -> int | None:
        return self._inner.token_to_id(token)

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of ``text``. ``special``: with the tokens that begin and end a sequence. Releases the GIL while at work.

        Raises FerrumError for a lone surrogate and for a text over ``MAX_TEXT_CHARS``.
        """
        check_text(text)
        ids: list[int] = self._inner.encode_batch_fast([text], add_special_tokens=special)[0].ids
        if special and self._bos is not None and ids[:1] != [self._bos]:
            ids.insert(0, self._bos)
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


def check_text(text: str, where: str = "prompt") -> None:
    """Raises FerrumError for text that UTF-8 cannot express or that is too long to be a prompt."""
    if len(text) > MAX_TEXT_CHARS:
        raise FerrumError("text-too-long", f"a text may have {MAX_TEXT_CHARS} characters", where, "shorten it")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            what = f"character {error.start} is half of a surrogate pair"
            raise FerrumError("invalid-text", what, where, "send valid Unicode") from None


def to_json(value: object) -> str:
    """JSON as chat templates and models are trained on it: separators with a space, no escapes beyond JSON's own."""
    return json.dumps(value, ensure_ascii=False)
