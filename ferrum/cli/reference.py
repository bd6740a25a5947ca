"""Makes docs/cli.md from the parsers: ``python -m ferrum.cli.reference FILE``; without a file it prints."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ferrum import env
from ferrum.cli.explain import stage_texts
from ferrum.cli.main import VERBS, build_parser
from ferrum.cli.options import COMMAND_LINE_ONLY, Parser

INTRODUCTION = """\
# The command line

This page is made from the parsers by `make docs`; a test checks that it is current.

`ferrum VERB ...`, or `python -m ferrum VERB ...`. A value comes from the flag, else from the environment, else from
`ferrum.toml`, else it is the default. Errors are one line on stderr, `error: what · where · next step`.

| exit status | meaning |
|---|---|
| 0 | done |
| 1 | an error, described in one line |
| 2 | the command line itself is wrong |
| 130 | interrupted with Ctrl-C; nothing half-written is left |
"""

STAGES_INTRODUCTION = """\
In this order. `ferrum compile MODEL --stop-after STAGE` ends after one, `--dump-dir DIR` writes each one's result to
`DIR/NN-STAGE.*`, `--start-from STAGE` goes on from the dump before it, and `ferrum explain STAGE` prints its line."""

SETTINGS = """\
## ferrum.toml

The file in the current folder, or the one that `--config` or `FERRUM_CONFIG` names. Tables are verbs, keys are long
options without the dashes; an unknown key is an error.

```toml
[serve]
port = 9000
max-num-seqs = 8

[compile]
quant = "int8"
```

Only on the command line: {only}.
"""


def reference() -> str:
    """The whole page."""
    _, verbs = build_parser()
    parts = [INTRODUCTION, _common(), *(_verb(name, verbs[name]) for name in VERBS), _environment()]
    only = sorted("--" + dest.replace("_", "-") for dest in COMMAND_LINE_ONLY - {"help", "version", "json"})
    parts.append(_stages())
    parts.append(SETTINGS.format(only=", ".join(f"`{flag}`" for flag in only)))
    return "\n".join(parts)


def _common() -> str:
    return (
        "Everywhere: `-v` (up to `-vvvv`) says more, `-vvv` shows the traceback of a fault; `--json` prints JSON instead of\n"
        "text; `--home`, `--cache-dir` and `--config` choose folders and the settings file; `ferrum --version`.\n"
    )


def _stages() -> str:
    rows = (f"| `{name}` | {_text(text)} |" for name, text in stage_texts().items())
    return "\n".join(["## Stages", "", STAGES_INTRODUCTION, "", "| stage | what happens |", "|---|---|", *rows, ""])


def _verb(name: str, parser: Parser) -> str:
    positional = [a for a in parser.positionals() if a.help != argparse.SUPPRESS]
    usage = " ".join(["ferrum", name, *(_positional(a) for a in positional), "[options]"])
    lines = [f"## {name}", "", (parser.description or "").strip(), "", f"`{usage}`", ""]
    common = {v.dest for v in env.VARIABLES if v.is_path} | {"verbose", "json"}
    rows = [(f"`{_text(_positional(a))}`", _text(a.help)) for a in positional]
    rows += [(f"`{_flags(a)}`", _text(a.help)) for dest, a in parser.options().items() if dest not in common]
    if rows:
        lines += ["| argument | meaning |", "|---|---|", *(f"| {left} | {right} |" for left, right in rows), ""]
    return "\n".join(lines)


def _positional(action: argparse.Action) -> str:
    name = str(action.metavar or action.dest)
    return f"[{name} ...]" if action.nargs in ("*", "?") else name


def _flags(action: argparse.Action) -> str:
    flags = ", ".join(action.option_strings)
    if action.nargs == 0 or isinstance(action, argparse.BooleanOptionalAction):
        return flags
    if action.choices is not None:
        return f"{flags} {{{','.join(map(str, action.choices))}}}"
    return f"{flags} {action.metavar or action.dest.upper()}"


def _text(text: str | None) -> str:
    return (text or "").replace("|", "\\|")


def _environment() -> str:
    rows = (f"| `{v.name}` | `{v.flag}` | {v.meaning} |" for v in env.VARIABLES)
    return "\n".join(["## Environment", "", "| variable | flag | meaning |", "|---|---|---|", *rows, ""])


def main() -> int:
    text = reference()
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(text, encoding="utf-8")
    else:
        print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
