"""Options that several verbs share, and how the verbs find the pack that a user's text means."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ferrum.cli.options import non_negative
from ferrum.cli.progress import Progress, stage_progress

QUANTS = ("keep", "none", "f32", "fp8", "int8", "int4-g128", "int4-g32", "int4a-g128", "int4a-g32")
KV_DTYPES = ("bf16", "int8", "f32")
POOLINGS = ("mean", "cls", "last", "max", "mean_sqrt_len", "weighted_mean")
ACTIVATIONS = ("auto", "f32")
SOURCE_HELP = "a folder, a .gguf, .onnx or .pt2 file, an alias (qwen3:0.6b), or org/name[@revision]"
MODEL_HELP = "a pack, a folder, a .gguf, .onnx or .pt2 file, an alias such as qwen3:0.6b, or org/name[@revision]"


def add_model(parser: argparse.ArgumentParser, metavar: str = "PACK|MODEL") -> None:
    parser.add_argument("model", metavar=metavar, help=MODEL_HELP)


def add_compile_choices(parser: argparse.ArgumentParser) -> None:
    """What decides a pack that has to be compiled first."""
    targets = "machine to compile for: cpu, cuda or metal for this one, or a name (default cpu)"
    parser.add_argument("--target", default="cpu", help=targets)
    quant = "number format of the weights (default keep: what the model has quantized stays as it is, the rest is bf16)"
    parser.add_argument("--quant", default="keep", choices=QUANTS, help=quant)
    parser.add_argument(
        "--kv-dtype", default="", choices=KV_DTYPES, help="format of the KV cache (default bf16, or f32 with f32 weights)"
    )
    activations = "what products on CPUs read: auto rounds it to what their instructions take, f32 does not (default auto)"
    parser.add_argument("--activations", default="auto", choices=ACTIVATIONS, help=activations)
    parser.add_argument(
        "--max-model-len", type=non_negative, default=0, metavar="N", help="longest sequence in tokens (default: the model's)"
    )


def add_pooling(parser: argparse.ArgumentParser) -> None:
    """For models whose folder does not say it: only where a model is compiled, since a pack keeps it."""
    pooling = "make a pack that embeds, with this row of a text (default: as the model's modules.json says)"
    parser.add_argument("--pooling", default="", choices=POOLINGS, help=pooling)


def add_load_choices(parser: argparse.ArgumentParser) -> None:
    """How a pack is loaded."""
    threads = "CPU threads (default: all cores, or as many as a container's limit lets run at once)"
    parser.add_argument("--threads", type=non_negative, default=0, metavar="N", help=threads)
    parser.add_argument("--trust", action="store_true", help="open a pack that was neither built here nor signed")
    add_variant(parser)


def add_variant(parser: argparse.ArgumentParser) -> None:
    meaning = "variant of the pack's code, of those that ferrum explain lists (default: the first that this CPU can run)"
    parser.add_argument("--variant", default="", metavar="NAME", help=meaning)


@contextmanager
def progress_of(args: argparse.Namespace) -> Iterator[Progress]:
    """Progress of downloads and stages on stderr; silent with --json."""
    with stage_progress(quiet=bool(args.json)) as progress:
        yield progress


def find_pack(args: argparse.Namespace, *, text: bool = True) -> Path:
    """The pack for ``args.model``: opened as it is, remembered, or pulled and compiled now with a progress bar.

    ``text``: refuse a model without a tokenizer before it is compiled.
    """
    from ferrum.hub import parse_name
    from ferrum.store import PackRequest, check_tokenizer, resolve_pack

    name = parse_name(args.model)
    if name.kind == "pack":
        assert name.path is not None
        return name.path
    with progress_of(args) as progress:
        check = check_tokenizer if text else None
        request = PackRequest(args.target, args.quant, args.kv_dtype, args.max_model_len, args.activations)
        path = resolve_pack(args.model, request, on_file=progress, on_stage=progress, check=check)
    if args.verbose:
        print(f"pack: {path}", file=sys.stderr)
    return path
