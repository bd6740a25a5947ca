"""The ``ferrum`` command: one verb a file, errors as one line, exit codes 0, 1, 2 and 130."""

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib
import json
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from ferrum.cli.options import Parser, add_common, apply_settings, finish_common
from ferrum.errors import EXIT_FAILURE, EXIT_INTERRUPTED, FerrumError, one_line
from ferrum.version import __version__

# verb → what it does; the module is ferrum.cli.<verb>
VERBS = {
    "compile": "turn a model into a .fpk file",
    "serve": "start an OpenAI-compatible server",
    "run": "chat in the terminal",
    "embed": "turn texts into embeddings",
    "pull": "download a model from the Hugging Face hub",
    "list": "show models and packs on this machine",
    "stop": "end the running server",
    "batch": "answer a file of requests",
    "bench": "measure prefill and decode speed",
    "explain": "show what is in a pack, what a stage does, or what an error code means",
    "diff": "show where two packs differ, how far apart their answers are and which is faster here",
    "verify": "check a pack's hashes, signature and answers",
    "check": "list everything in a model that cannot be compiled yet",
    "doctor": "show what can be compiled and run on this machine",
}
VERBOSE_TRACEBACK = 3


def verb_module(verb: str) -> ModuleType:
    return importlib.import_module(f"ferrum.cli.{verb}")


def build_parser(only: str | None = None) -> tuple[Parser, dict[str, Parser]]:
    """The whole parser and the parsers of the verbs; with ``only``, the other verbs are named but not loaded."""
    parser = Parser(prog="ferrum", description="A model becomes one file that runs.")
    parser.add_argument("--version", action="version", version=f"ferrum {__version__}")
    add_common(parser)
    commands = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    verbs: dict[str, Parser] = {}
    for verb, summary in VERBS.items():
        sub = commands.add_parser(verb, help=summary, description=summary[0].upper() + summary[1:] + ".")
        verbs[verb] = sub
        if only in (None, verb):
            verb_module(verb).add_arguments(sub)
            add_common(sub)
    return parser, verbs


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    verbose = sum(a.count("v") for a in arguments if a.startswith("-v") and set(a[1:]) == {"v"})
    try:
        return _dispatch(arguments)
    except FerrumError as error:
        return _report(error, verbose, "--json" in arguments)
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of a pipe went away, as in `ferrum list | head -1`; leave stdout where a late flush cannot fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _report(describe_os_error(error), verbose, "--json" in arguments)
    except Exception as error:
        if verbose >= VERBOSE_TRACEBACK:
            traceback.print_exc()
        return _report(describe_fault(error), verbose, "--json" in arguments)


def _dispatch(arguments: list[str]) -> int:
    first = next((a for a in arguments if a in VERBS), None)
    parser, verbs = build_parser(only=first or "")
    if not arguments:
        parser.print_help()
        return 0
    if first is not None:
        early, _ = _common_only().parse_known_args(arguments)
        apply_settings(verbs[first], first, list(VERBS), getattr(early, "config", None))
    args, unknown = parser.parse_known_args(arguments)
    if unknown:
        verbs[args.verb].refuse_unknown(unknown)
    finish_common(args)
    result: int = verb_module(args.verb).run(args)
    sys.stdout.flush()
    return result


def _common_only() -> Parser:
    """Reads just --config, before the verb's own defaults are known."""
    parser = Parser(add_help=False)
    parser.add_argument("--config", default=argparse.SUPPRESS)
    return parser


def _report(error: FerrumError, verbose: int, as_json: bool) -> int:
    line = f"error: {error}" + (f" · ferrum explain {error.code}" if verbose else "")
    if as_json:
        fields = {"code": error.code, "what": error.what, "where": error.where, "next_step": error.next_step}
        line = json.dumps({"error": fields}, ensure_ascii=False)
    with contextlib.suppress(BrokenPipeError):  # the status says it even when nobody reads the line
        print(line, file=sys.stderr, flush=True)
    return EXIT_FAILURE


def describe_os_error(error: OSError) -> FerrumError:
    """An operating system's refusal as an error that says what to do."""
    where = one_line(str(error.filename)) if error.filename is not None else ""
    codes = {
        errno.ENOSPC: ("disk-full", "no space left on the disk", "free some space and repeat the command"),
        errno.EDQUOT: ("disk-full", "the disk quota is used up", "free some space and repeat the command"),
        errno.EADDRINUSE: ("port-busy", "the port is in use", "choose another one with --port"),
        errno.EACCES: ("permission", "permission denied", "check the owner and the mode"),
        errno.ENOENT: ("file-missing", "there is no such file or folder", "check the name"),
        errno.EISDIR: ("file-missing", "this is a folder, not a file", "check the name"),
        errno.ENOTDIR: ("file-missing", "a part of the path is a file, not a folder", "check the name"),
        errno.ENAMETOOLONG: ("file-missing", "the name is too long", "check the name"),
        errno.EROFS: ("permission", "the file system is read-only", "choose another folder"),
    }
    default = ("system-error", error.strerror or str(error), "repeat with -vvv to see where it happened")
    code, what, next_step = codes.get(error.errno or 0, default)
    return FerrumError(code, what, where, next_step)


def describe_fault(error: BaseException) -> FerrumError:
    """A fault of our own: the place in one line; the traceback is shown with -vvv."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return FerrumError("internal", f"{type(error).__name__}: {error}", place, "repeat with -vvv to see the traceback")


if __name__ == "__main__":
    sys.exit(main())
