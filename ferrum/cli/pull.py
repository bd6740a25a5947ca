"""``ferrum pull``: a model's files from the Hugging Face hub into its cache."""

from __future__ import annotations

import argparse

from ferrum.cli.arguments import progress_of
from ferrum.cli.output import print_json, size
from ferrum.errors import FerrumError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="an alias such as qwen3:0.6b, or org/name[@revision]")
    parser.add_argument("--revision", default="", help="branch, tag or commit (default main)")


def run(args: argparse.Namespace) -> int:
    from dataclasses import replace

    from ferrum.hub import parse_name, pull

    name = parse_name(args.model)
    if name.kind != "hub":
        if args.model.lower() == "tiny":
            print("tiny is built in")
            return 0
        raise FerrumError("model-unknown", "this is not a name on the hub", args.model, "give an alias or org/name")
    if args.revision:
        name = replace(parse_name(f"{name.repo}@{args.revision}"), text=args.model)
    with progress_of(args) as progress:
        folder = pull(name, progress)
    total = sum(f.stat().st_size for f in folder.iterdir())
    if args.json:
        print_json({"model": name.repo, "revision": folder.name, "path": str(folder), "bytes": total})
    else:
        print(f"{name.repo}  {size(total)}  {folder}")
    return 0
