"""``ferrum batch``: a file of requests in OpenAI's batch form, answered line by line into another."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ferrum.cli.arguments import add_compile_choices, add_load_choices, find_pack
from ferrum.cli.options import byte_size, positive
from ferrum.cli.output import print_json
from ferrum.cli.progress import stage_progress
from ferrum.errors import FerrumError

_FIRST_BYTES = 8 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", metavar="IN.jsonl", help="requests, one a line: custom_id, method, url, body")
    add_compile_choices(parser)
    add_load_choices(parser)
    add = parser.add_argument
    add("-o", "--output", required=True, metavar="OUT.jsonl", help="answers in the same order; what is there already is kept")
    add("--model", default="", metavar="PACK|MODEL", help="what answers (default: the model that the first line names)")
    add("--served-model-name", default="", metavar="NAME", help="name that the lines give (default: the pack's)")
    add("--max-num-seqs", type=positive, default=16, metavar="N", help="lines that run at once (default 16)")
    add("--max-num-batched-tokens", type=positive, default=512, metavar="N", help="tokens in one step (default 512)")
    add("--kv-cache-memory", type=byte_size, default=0, metavar="SIZE", help="memory of the KV cache (default: chosen)")


def run(args: argparse.Namespace) -> int:
    from ferrum.pack.atomic import check_place
    from ferrum.server.options import ServeOptions

    source, target = Path(args.input), Path(args.output)
    args.model = args.model or first_model(source)
    check_place(target)
    if target.exists() and target.samefile(source):
        raise FerrumError("bad-option", "the output would overwrite the input", str(target), "name another output")
    path = find_pack(args)
    options = ServeOptions(
        max_num_seqs=args.max_num_seqs,
        max_model_len=args.max_model_len,
        max_num_batched_tokens=args.max_num_batched_tokens,
        kv_cache_memory=args.kv_cache_memory,
        served_model_name=args.served_model_name,
        num_threads=args.threads,
        trust=args.trust,
        verbose=args.verbose,
    )
    from ferrum.server.batch.jobs import count_lines
    from ferrum.server.batch.offline import run_batch

    total = count_lines(source, options.max_body_bytes)
    counts = {"total": total, "completed": 0, "failed": 0}
    with stage_progress(quiet=bool(args.json)) as progress:

        def told(done: int, good: int) -> None:
            counts.update(completed=good, failed=done - good)
            progress("lines", done, total)

        run_batch(path, options, source, target, told)
    if args.json:
        print_json({"path": str(target), **counts})
    else:
        print(f"{target}  {total} lines, {counts['failed']} of them errors")
    return 0


def first_model(source: Path) -> str:
    """The model that the first line names. Raises FerrumError when it names none."""
    with source.open("rb") as stream:
        line = stream.readline(_FIRST_BYTES)
    try:
        name = json.loads(line)["body"]["model"]
    except (ValueError, KeyError, TypeError, RecursionError):
        name = ""
    if not isinstance(name, str) or not name:
        raise FerrumError("bad-option", "the first line names no model", str(source), "give --model")
    return name
