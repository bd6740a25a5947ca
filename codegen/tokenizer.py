"""A model's tokenizer on its way into a pack: everything that other files of the folder add to it is written into it.

`transformers` puts a tokenizer together from tokenizer.json, tokenizer_config.json, special_tokens_map.json and
added_tokens.json (``PreTrainedTokenizerBase._from_pretrained`` of version 5). The pack holds the result alone, so that the
runtime has one source. Beside a tokenizer.json, ``add_bos_token`` and ``add_eos_token`` mean nothing there: the file's own
post-processor says what begins and ends a sequence, and so it does here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import tokenizers
from tokenizers import AddedToken

from ferrum.errors import FerrumError

_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
Json = Mapping[str, Any]


def special_tokens(settings: Json) -> dict[str, str]:
    """The special tokens that have a name, and their text: what `transformers` hands to chat templates."""
    more = settings.get("extra_special_tokens")
    given = {**settings, **(more if isinstance(more, dict) else {})}
    named = {name: _text(token) for name, token in given.items() if name.endswith("_token") and name.isidentifier()}
    return {name: text for name, text in named.items() if text}


def merged_settings(settings: Json, special_map: Json) -> dict[str, Any]:
    """tokenizer_config.json with special_tokens_map.json, which counts only where the former lists no added tokens."""
    return dict(settings) if "added_tokens_decoder" in settings else {**settings, **special_map}


def whole_tokenizer(data: bytes, settings: Json, added: Json) -> bytes:
    """``data`` (tokenizer.json) with the tokens that ``settings`` and ``added`` (added_tokens.json) name; often unchanged.

    Raises FerrumError for a file that is not a tokenizer, and for tokens that are none.
    """
    tokenizer = _load(data)
    before = _listing(tokenizer)
    try:
        have = list(tokenizer.get_added_tokens_decoder().values())
        tokenizer.add_tokens(_missing(have, list(_declared(settings, added)), settings))
    except (TypeError, ValueError, AttributeError, LookupError) as error:
        what = f"names a token that is none: {error}"
        raise FerrumError("bad-tokenizer", what, "tokenizer_config.json", "check that the model folder is complete") from None
    return plain_merges(data if _listing(tokenizer) == before else tokenizer.to_str().encode())


def token_facts(data: bytes) -> tuple[dict[str, int], int]:
    """Ids of the added tokens, special ones included; and the characters of the longest token, as the vocabulary spells it."""
    tokenizer = _load(data)
    ids = {token.content: i for i, token in tokenizer.get_added_tokens_decoder().items()}
    return ids, max(map(len, tokenizer.get_vocab(with_added_tokens=True)), default=0)


def _load(data: bytes) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_buffer(data)
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException:  # the library's Rust panics are not Exceptions
        raise FerrumError(
            "bad-tokenizer", "is not a tokenizer", "tokenizer.json", "check that the model folder is complete"
        ) from None


def _listing(tokenizer: tokenizers.Tokenizer) -> list[tuple[int, str]]:
    return sorted((i, repr(token)) for i, token in tokenizer.get_added_tokens_decoder().items())


def _missing(have: list[AddedToken], declared: list[AddedToken], settings: Json) -> list[AddedToken]:
    """``declared`` tokens, special if they have a name, then special ones that nobody declares. Without a list of declared
    ones the tokenizer's own count as such, so that those with a name become special."""
    named = special_tokens(settings).values()
    declared = declared if "added_tokens_decoder" in settings else [*have, *declared]
    for token in declared:
        token.special = token.special or token.content in named
    known = {token.content for token in (*have, *declared)}
    return declared + [AddedToken(text, special=True) for text in dict.fromkeys(_specials(settings)) if text not in known]


def _declared(settings: Json, added: Json) -> Iterator[AddedToken]:
    """Tokens in the order of their ids; the library numbers new ones itself."""
    decoder = settings.get("added_tokens_decoder")
    if isinstance(decoder, dict):
        for _, token in sorted(decoder.items(), key=lambda item: int(item[0])):
            yield AddedToken(token["content"], **{name: bool(token[name]) for name in _FLAGS if name in token})
        return
    special = _specials(settings)
    for text, _ in sorted(added.items(), key=lambda item: int(item[1])):
        yield AddedToken(text, normalized=text not in special, special=text in special)


def _specials(settings: Json) -> list[str]:
    """Texts of the tokens that are special because of their place in the settings."""
    listed = settings.get("extra_special_tokens") or settings.get("additional_special_tokens")
    texts = [_text(token) for token in listed] if isinstance(listed, list) else []
    return [*special_tokens(settings).values(), *(text for text in texts if text)]


def _text(token: object) -> str:
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""


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
