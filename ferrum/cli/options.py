"""The argument parser and the order of precedence: flag, environment, ``ferrum.toml``, default."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ferrum import env
from ferrum.errors import EXIT_USAGE, FerrumError, one_line

# These weaken a protection, so a file that came with somebody's folder must not be able to switch them on.
COMMAND_LINE_ONLY = frozenset({"trust", "insecure", "home", "cache_dir", "config", "help", "version", "json"})


def nearest(word: str, words: Iterable[str]) -> str:
    """The one of ``words`` that ``word`` is most like; empty when it is like none."""
    import difflib

    return next(iter(difflib.get_close_matches(word, list(words), 1)), "")


class Parser(argparse.ArgumentParser):
    """An ``ArgumentParser`` whose errors are one line and which knows its options by attribute name."""

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(**kwargs)

    def options(self) -> dict[str, argparse.Action]:
        """The options that a settings file may name, by attribute name."""
        return {a.dest: a for a in self._actions if a.option_strings and a.dest != "help"}

    def positionals(self) -> list[argparse.Action]:
        return [a for a in self._actions if not a.option_strings]

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        names = [str(c) for c in action.choices]
        near = nearest(str(value), names)
        choice = f"did you mean {near}?" if near else "choose from " + ", ".join(names)
        raise argparse.ArgumentError(action, f"{value!r} is not known · {choice}")

    def refuse_unknown(self, arguments: Sequence[str]) -> NoReturn:
        """End with the options of this parser that the first unknown one is like."""
        names = [s for a in self._actions for s in a.option_strings if s.startswith("--")]
        name = arguments[0].partition("=")[0]
        near = nearest(name, names) if name.startswith("-") else ""
        self.error(f"unrecognized arguments: {' '.join(arguments)}" + (f" · did you mean {near}?" if near else ""))

    def error(self, message: str) -> NoReturn:
        with contextlib.suppress(BrokenPipeError):  # the status says it even when nobody reads the line
            print(f"error: {one_line(message)} · {self.prog} · see {self.prog} --help", file=sys.stderr, flush=True)
        sys.exit(EXIT_USAGE)


def add_common(parser: argparse.ArgumentParser) -> None:
    """The options that every verb takes. They are suppressed when absent, so they may stand before or after the verb."""
    group = parser.add_argument_group("everywhere")
    group.add_argument("-v", dest="verbose", action="count", default=argparse.SUPPRESS, help="say more (up to -vvvv)")
    group.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON instead of text")
    for variable in env.VARIABLES:
        if variable.is_path:
            group.add_argument(
                variable.flag, dest=variable.dest, metavar="PATH", default=argparse.SUPPRESS, help=variable.meaning
            )


def finish_common(args: argparse.Namespace) -> None:
    """Fill the common options that were not given and publish them to ``ferrum.env``."""
    for variable in env.VARIABLES:
        if variable.is_path:
            value = getattr(args, variable.dest, None)
            if value is not None:
                env.put(variable.name, os.path.abspath(os.path.expanduser(value)))
        elif variable.published and (text := str(getattr(args, variable.dest, None) or "")):
            env.put(variable.name, text)
    if not hasattr(args, "verbose"):
        args.verbose = _integer("FERRUM_VERBOSE", env.get("FERRUM_VERBOSE") or "0")
    if not hasattr(args, "json"):
        args.json = False


def apply_settings(parser: Parser, verb: str, verbs: Sequence[str], config: str | None) -> None:
    """Put values of the settings file, then of the environment, in the place of the parser's defaults."""
    options = parser.options()
    settings = read_settings(config, verbs)
    for key, value in settings.get(verb, {}).items():
        dest = key.replace("-", "_")
        if dest not in options or dest in COMMAND_LINE_ONLY:
            raise FerrumError(
                "config-unknown-key",
                f"unknown setting {key}" if dest not in options else f"{key} is accepted on the command line only",
                f"[{verb}] in {config_path(config)}",
                f"settings are the long options of ferrum {verb} --help",
            )
        parser.set_defaults(**{dest: _convert(parser, options[dest], value, f"[{verb}] {key} in {config_path(config)}")})
    for variable in env.VARIABLES:
        text = env.get(variable.name)
        if text and not variable.is_path and variable.dest in options and variable.dest != "verbose":
            parser.set_defaults(**{variable.dest: _convert(parser, options[variable.dest], text, variable.name)})


def config_path(config: str | None) -> Path | None:
    """The settings file in use: the one that was named, or ``ferrum.toml`` in the current folder."""
    named = config or env.get("FERRUM_CONFIG")
    if named:
        return Path(named)
    local = Path("ferrum.toml")
    return local if local.is_file() else None


def read_settings(config: str | None, verbs: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The tables of the settings file, one per verb. Raises FerrumError for a bad file or an unknown table."""
    path = config_path(config)
    if path is None:
        return {}
    import tomllib  # not above: most commands have no settings file, and they should start quickly

    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FerrumError("config-missing", "there is no such settings file", str(path), "check --config") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FerrumError("config-syntax", f"not valid TOML: {error}", str(path), "correct the file") from error
    for name, value in settings.items():
        if name not in verbs or not isinstance(value, dict):
            raise FerrumError(
                "config-unknown-key", f"unknown table {name}", str(path), "tables are named after verbs, such as [serve]"
            )
    return settings


def _convert(parser: Parser, action: argparse.Action, value: Any, where: str) -> Any:
    """``value`` as the option's own type, checked against its choices."""
    kind = action.type
    try:
        if isinstance(action, (argparse._StoreTrueAction, argparse.BooleanOptionalAction)):
            if not isinstance(value, bool):
                raise ValueError("true or false is expected")
            return value
        if isinstance(value, (bool, dict)):
            raise ValueError("a text or a number is expected")
        if isinstance(value, list):
            items = [kind(str(item)) if callable(kind) else str(item) for item in value]
            return [part for item in items for part in (item if isinstance(item, tuple) else (item,))]
        result = kind(str(value)) if callable(kind) else str(value)
    except (ValueError, TypeError, argparse.ArgumentTypeError) as error:
        raise FerrumError("config-bad-value", f"{value!r} is not accepted: {error}", where, "correct the value") from error
    if action.choices is not None and result not in action.choices:
        raise FerrumError(
            "config-bad-value", f"{value!r} is not accepted", where, "choose from " + ", ".join(map(str, action.choices))
        )
    return result


def _integer(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise FerrumError("config-bad-value", f"{text!r} is not a number", name, "correct the variable") from error


# ---- types of options


def whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def positive(text: str) -> int:
    number = whole(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def non_negative(text: str) -> int:
    number = whole(text)
    if number < 0:
        raise argparse.ArgumentTypeError("must not be negative")
    return number


def port(text: str) -> int:
    number = whole(text)
    if not 0 <= number <= 65535:
        raise argparse.ArgumentTypeError("must be between 0 and 65535")
    return number


def fraction(text: str) -> float:
    number = float(text)
    if not 0.0 < number <= 1.0:
        raise argparse.ArgumentTypeError("must be above 0 and at most 1")
    return number


def temperature(text: str) -> float:
    number = float(text)
    if not 0.0 <= number <= 2.0:
        raise argparse.ArgumentTypeError("must be between 0 and 2")
    return number


def penalty(text: str) -> float:
    number = float(text)
    if not 0.0 < number <= 2.0:
        raise argparse.ArgumentTypeError("must be above 0 and at most 2")
    return number


def comma_list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def byte_size(text: str) -> int:
    """``512M``, ``2GiB`` or plain bytes."""
    units = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
    lower = text.strip().lower().removesuffix("b").removesuffix("i")
    unit = lower[-1:] if lower[-1:] in "kmgt" else ""
    number = float(lower.removesuffix(unit)) * units[unit]
    if not 0 < number < 1 << 50:
        raise argparse.ArgumentTypeError("a size such as 512M or 4G is expected")
    return int(number)


def is_interactive() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
