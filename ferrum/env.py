"""Every environment variable that ferrum reads, and the folders that follow from them.

No other file reads ``FERRUM_*``. Each variable has a flag of the same meaning; the command line writes a given flag back
into the environment, so that processes it starts see the same value.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Variable:
    """``dest`` is the option's attribute in the parsed command line; ``is_path`` values are made absolute. They, and what is
    ``published``, are read from here alone, so a given flag is written back."""

    name: str
    flag: str
    dest: str
    meaning: str
    is_path: bool = False
    published: bool = False


VARIABLES = (
    Variable("FERRUM_HOME", "--home", "home", "folder of packs, keys and running servers (default ~/.ferrum)", is_path=True),
    Variable("FERRUM_CACHE", "--cache-dir", "cache_dir", "folder of the build cache (default FERRUM_HOME/cache)", is_path=True),
    Variable("FERRUM_CONFIG", "--config", "config", "settings file (default ./ferrum.toml when it exists)", is_path=True),
    Variable("FERRUM_VERBOSE", "-v", "verbose", "how much is said on stderr, 0 to 4"),
    Variable("FERRUM_TARGET", "--target", "target", "machine to compile for"),
    Variable("FERRUM_THREADS", "--threads", "threads", "CPU threads of one loaded model"),
    Variable("FERRUM_VARIANT", "--variant", "variant", "variant of a pack's code for CPUs", published=True),
    Variable("FERRUM_HOST", "--host", "host", "address the server listens on"),
    Variable("FERRUM_PORT", "--port", "port", "port the server listens on"),
    Variable("FERRUM_API_KEY", "--api-key", "api_key", "key that requests must carry"),
)


def get(name: str) -> str:
    """The value of a variable of the table, or an empty string."""
    if all(v.name != name for v in VARIABLES):
        raise KeyError(name)
    return os.environ.get(name, "")


def put(name: str, value: str) -> None:
    """Set a variable of the table for this process and the processes it starts."""
    if all(v.name != name for v in VARIABLES):
        raise KeyError(name)
    os.environ[name] = value


def home() -> Path:
    """Where packs, keys and the records of running servers live; not created here."""
    return Path(os.path.expanduser(get("FERRUM_HOME") or "~/.ferrum")).absolute()


def cache_dir() -> Path:
    """Compiled objects that can be deleted at any time; not created here."""
    given = get("FERRUM_CACHE")
    return Path(os.path.expanduser(given)).absolute() if given else home() / "cache"


def packs_dir() -> Path:
    """Packs that ``serve``, ``run`` and ``bench`` made from a model's name."""
    return home() / "packs"


def run_dir() -> Path:
    """One small file per running server, read by ``ferrum stop``."""
    return home() / "run"
