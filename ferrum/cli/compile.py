"""``ferrum compile``: a model becomes a .fpk, or one for each of several targets."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from pathlib import Path

from ferrum.cli.arguments import SOURCE_HELP, add_compile_choices, add_pooling, progress_of
from ferrum.cli.options import non_negative
from ferrum.cli.output import print_json, print_notes, size
from ferrum.cli.quality import quality_note


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help=SOURCE_HELP)
    add_compile_choices(parser)
    add_pooling(parser)
    calibrate = "text that the model reads to see how large its channels are, before its weights are quantized: a file, shipped "
    calibrate += "(ferrum's own) or none (default: shipped where --quant makes integers of weights)"
    parser.add_argument("--calibrate", default="auto", metavar="FILE|shipped|none", help=calibrate)
    parser.add_argument("-o", "--output", metavar="FILE", help="the pack's path (default NAME.TARGET.fpk in this folder)")
    parser.add_argument("--dump-ir", action="store_true", help="write the graph after every stage to build/dump/NAME")
    parser.add_argument(
        "--dump-dir", metavar="DIR", help="write the graph after every stage to DIR; of several targets, each has a folder there"
    )
    parser.add_argument("--stop-after", default="", metavar="STAGE", help="end after this stage and write no pack")
    parser.add_argument("--start-from", default="", metavar="STAGE", help="go on from the dump of the stage before this one")
    parser.add_argument("--jobs", type=non_negative, default=0, metavar="N", help="threads that encode weights (default: all)")
    parser.add_argument(
        "--no-fuse", dest="fuse", action="store_false", help="leave out the stages that only make the pack faster"
    )
    parser.add_argument("--no-prove", dest="prove", action="store_false", help="leave out the run against the interpreter")
    parser.add_argument(
        "--tune", action="store_true", help="measure how to cut matrix products on this machine, which must be the target"
    )


def run(args: argparse.Namespace) -> int:
    from ferrum.hub import parse_name
    from ferrum.pack.reader import read_manifest
    from ferrum.store import local_source, require_compiler

    name = parse_name(args.model)
    try:
        from ferrum.codegen.driver import compile_targets
        from ferrum.codegen.options import CompileOptions
        from ferrum.codegen.text import read_text
    except ModuleNotFoundError as error:
        raise require_compiler(error) from error
    _check_places(args)
    started = time.monotonic()
    with progress_of(args) as progress:
        source = local_source(name, progress, pooling=args.pooling)
        dump = args.dump_dir or (str(Path("build") / "dump" / name.short) if args.dump_ir or args.start_from else None)
        options = CompileOptions(
            model=str(source),
            target=args.target,
            quant=args.quant,
            kv_dtype=args.kv_dtype,
            activations=args.activations,
            calibrate=args.calibrate,
            max_model_len=args.max_model_len,
            output=Path(args.output) if args.output else None,
            dump_dir=Path(dump) if dump else None,
            stop_after=args.stop_after,
            start_from=args.start_from,
            jobs=args.jobs,
            prove=args.prove,
            tune=args.tune,
            fuse=args.fuse,
            pooling=args.pooling,
            revision=source.name if name.kind == "hub" else "",
            name=name.short,
        )
        paths = compile_targets(options, progress)
    seconds = time.monotonic() - started
    if not args.stop_after:
        made = [read_manifest(path).provenance for path in paths]
        said = [("weights", each.blocks) for each in made] + [("calibrated", each.calibrated) for each in made]
        text = read_text(source)
        notes = [*dict.fromkeys(f"{what}: {of}" for what, of in said if of), *text.notes]
        print_notes([*notes, *dict.fromkeys(note for path in paths if (note := quality_note(path)))])
    if args.json:
        records = [{"path": str(p), "bytes": p.stat().st_size, "seconds": round(seconds, 3)} for p in paths]
        print_json(records[0] if len(records) == 1 else records)
        return 0
    for path in paths:
        print(f"{path}  {size(path.stat().st_size)}  in {seconds:.1f} s" if path.is_file() else path)
    if not args.stop_after:
        print(f"next: ferrum {'serve' if text.tokenizer else 'explain'} {shlex.quote(str(paths[0]))}", file=sys.stderr)
    return 0


def _check_places(args: argparse.Namespace) -> None:
    """Where results go, and a text that is read, is looked at before a model is downloaded. Raises FerrumError."""
    from ferrum.pack.atomic import check_place
    from ferrum.text.given_text import read_given

    if args.calibrate not in ("auto", "shipped", "none"):
        read_given(args.calibrate)
    if not args.stop_after:
        check_place(Path(args.output or "pack.fpk"))
    if args.dump_dir:
        folder = Path(args.dump_dir).absolute()
        made = next((f for f in (folder, *folder.parents) if f.exists()), folder)
        check_place(made / "dump")
