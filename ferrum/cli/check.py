"""``ferrum check``: everything in a model that cannot be compiled yet, all at once."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from ferrum.cli.arguments import SOURCE_HELP, add_compile_choices, add_pooling, progress_of
from ferrum.cli.output import print_json, print_notes
from ferrum.errors import EXIT_FAILURE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help=SOURCE_HELP)
    add_compile_choices(parser)
    add_pooling(parser)


def run(args: argparse.Namespace) -> int:
    from ferrum.hub import parse_name
    from ferrum.store import local_source, require_compiler

    name = parse_name(args.model)
    try:
        from ferrum.codegen.driver import check_model
        from ferrum.codegen.options import CompileOptions
        from ferrum.codegen.text import read_text
    except ModuleNotFoundError as error:
        raise require_compiler(error) from error
    with progress_of(args) as progress:
        source = local_source(name, progress, pooling=args.pooling)
    options = CompileOptions(
        model=str(source),
        target=args.target,
        quant=args.quant,
        max_model_len=args.max_model_len,
        pooling=args.pooling,
        name=name.short,
    )
    findings, notes = check_model(options), read_text(source).notes
    if args.json:
        print_json({"model": args.model, "ok": not findings, "findings": [asdict(f) for f in findings], "notes": notes})
    elif findings:
        for finding in findings:
            print(" · ".join(part for part in (finding.what, finding.module, finding.source, finding.nearest) if part))
    else:
        print(f"{args.model} can be compiled for {args.target}")
    if not args.json:
        print_notes(notes)
    return EXIT_FAILURE if findings else 0
