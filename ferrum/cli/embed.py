"""``ferrum embed``: texts become embeddings, on stdout."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from ferrum.cli.arguments import add_compile_choices, add_load_choices, add_model, find_pack
from ferrum.cli.options import non_negative
from ferrum.errors import FerrumError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_compile_choices(parser)
    add_load_choices(parser)
    add = parser.add_argument
    add("-t", "--text", action="append", default=None, metavar="TEXT", help="a text (repeatable; default: each line of a pipe)")
    add("-f", "--format", default="json", choices=("json", "csv", "raw"), help="raw: float32, little-endian (default json)")
    add("--dimensions", type=non_negative, default=0, metavar="N", help="only so many numbers of each (default: all)")
    add("--prompt-name", default=None, metavar="NAME", help="which of the model's prompts goes before a text (default: its own)")


def run(args: argparse.Namespace) -> int:
    from ferrum.hub import parse_name
    from ferrum.llm import LLM

    parse_name(args.model)  # a wrong name is said before texts are read
    texts = _texts(args)
    path = find_pack(args)
    with LLM(path, max_model_len=args.max_model_len, num_threads=args.threads, trust=args.trust) as llm:
        rows = llm.embed(texts, dimensions=args.dimensions, prompt_name=args.prompt_name)
    if args.format == "raw":
        sys.stdout.buffer.write(rows.astype("<f4").tobytes())
        sys.stdout.buffer.flush()
    elif args.format == "csv":
        for row in rows:
            print(",".join(_shortest(row)))
    else:
        print(json.dumps([[float(number) for number in _shortest(row)] for row in rows]))
    return 0


def _shortest(row: NDArray[np.float32]) -> list[str]:
    """Each number in as few digits as tell it from others."""
    return [str(number) for number in row]


def _texts(args: argparse.Namespace) -> list[str]:
    """Those of the command line, else the lines of a pipe. Raises FerrumError when there are none."""
    texts: list[str] = args.text or []
    if not texts and not sys.stdin.isatty():
        texts = [line for line in sys.stdin.read().splitlines() if line]
    if not texts:
        raise FerrumError("prompt-empty", "there is no text", "-t", "give one with -t, or lines through a pipe")
    return texts
