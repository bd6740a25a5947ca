"""Keys with names and limits, from a file or from the command line."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ferrum.errors import FerrumError

MIN_KEY_CHARS = 8  # of a key that others can try
MAX_KEYS = 1024


@dataclass(frozen=True, kw_only=True)
class Key:
    """``name``: what files, batches and the log know its bearer by; empty for the only key. Limits of 0 are none.

    ``concurrent``: requests that generate at once. ``tokens_per_minute`` counts prompts and answers.
    """

    secret: str = field(repr=False)
    name: str = ""
    requests_per_minute: int = 0
    concurrent: int = 0
    tokens_per_minute: int = 0


_LIMITS = [f.name for f in fields(Key) if f.type == "int"]


def check_key(key: Key, where: str, *, reachable: bool) -> None:
    """``reachable``: by other machines. Raises FerrumError."""
    secret = key.secret
    if not secret or not secret.isascii() or not secret.isprintable() or secret.strip() != secret:
        raise FerrumError("bad-option", "the key must be printable ASCII", where, "choose a random key")
    if len(secret) < MIN_KEY_CHARS and reachable:
        what = f"on an address that others can reach, the key must have at least {MIN_KEY_CHARS} characters"
        raise FerrumError("bad-option", what, where, "choose a longer random key")


def read_keys(path: Path) -> tuple[Key, ...]:
    """The keys of a TOML file: a table for each name, with ``key`` and limits. Raises FerrumError."""
    import tomllib  # few servers have such a file

    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FerrumError("keys-file", f"cannot read: {error.strerror}", str(path), "check --api-key-file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FerrumError("keys-file", f"not valid TOML: {error}", str(path), "correct the file") from None
    keys = tuple(_key(name, table, path) for name, table in tables.items())
    if not keys or len(keys) > MAX_KEYS or len({k.secret for k in keys}) < len(keys):
        raise FerrumError("keys-file", f"1 to {MAX_KEYS} different keys are expected", str(path), "correct the file")
    return keys


def _key(name: str, table: Any, path: Path) -> Key:
    where = f"[{name}] in {path}"
    if (
        not name
        or len(name) > 64
        or not name.isprintable()
        or not isinstance(table, dict)
        or not isinstance(table.get("key"), str)
    ):
        raise FerrumError("keys-file", "a table with a name and a key is expected", where, 'write [name] and key = "…"')
    limits = {k: v for k, v in table.items() if k != "key"}
    for limit, value in limits.items():
        if limit not in _LIMITS:
            raise FerrumError("keys-file", f"{limit} is not known", where, "there are key, " + ", ".join(_LIMITS))
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise FerrumError("keys-file", f"{limit} must be a whole number", where, "0 is no limit")
    return Key(secret=table["key"], name=name, **limits)
