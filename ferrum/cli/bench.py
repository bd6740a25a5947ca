"""``ferrum bench``: prefill and decode speed, TTFT and TPOT, and how much of the machine's roofline that is."""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ferrum.cli.arguments import add_compile_choices, add_load_choices, add_model, find_pack
from ferrum.cli.machine import ROOF_UNITS, roofs_with
from ferrum.cli.options import positive
from ferrum.cli.output import print_json, print_table
from ferrum.errors import FerrumError
from ferrum.pack.programs import build_of, kv_groups
from ferrum.pack.schema import Manifest

if TYPE_CHECKING:
    from ferrum.engine.engine import Engine
    from ferrum.engine.load import LoadedModel


@dataclass(frozen=True)
class Sample:
    """One round: seconds until every sequence had its first token, and from then to the end."""

    prefill_s: float
    decode_s: float
    ttft_s: float
    tpot_s: float
    prefill_tokens_per_s: float
    decode_tokens_per_s: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_compile_choices(parser)
    add_load_choices(parser)
    add = parser.add_argument
    add("--rounds", type=positive, default=5, metavar="N", help="measured rounds after one that is not (default 5)")
    add("--concurrency", type=positive, default=1, metavar="N", help="sequences at once (default 1)")
    add("--prompt-tokens", type=positive, default=256, metavar="N", help="prompt length (default 256)")
    add("--max-tokens", type=positive, default=128, metavar="N", help="tokens to generate for each sequence (default 128)")
    add("--profile", action="store_true", help="one more round with the time of each kernel (CPU)")
    add("--output", default="human", choices=("human", "json"), help="form of the result (default human)")


def run(args: argparse.Namespace) -> int:
    from ferrum.devices.base import variant_of
    from ferrum.devices.options import DeviceOptions
    from ferrum.engine.load import load_model
    from ferrum.engine.options import EngineOptions

    path = find_pack(args, text=False)
    device = DeviceOptions(max_seqs=args.concurrency, max_tokens=512, max_model_len=args.max_model_len, num_threads=args.threads)
    model = load_model(path, trust=args.trust, device_options=device, engine_options=EngineOptions(prefix_cache=False))
    try:
        engine = model.generator
        _check_lengths(args, model.info.max_model_len)
        roof = roofs_with(model.executor, model.pack.manifest.target)
        _round(engine, model.info.vocab_size, args, 0)
        samples = [_round(engine, model.info.vocab_size, args, i + 1) for i in range(args.rounds)]
        manifest = model.pack.manifest
        result = summary(samples, roof, manifest, args, variant_of(model.executor))
        if args.profile:
            result["kernels"] = _profile(model, args)
    finally:
        model.close()
    if args.json or args.output == "json":
        print_json(result)
    else:
        _print(result)
    return 0


def _check_lengths(args: argparse.Namespace, longest: int) -> None:
    wanted = args.prompt_tokens + args.max_tokens
    if wanted > longest:
        what = f"{args.prompt_tokens} prompt tokens and {args.max_tokens} new ones exceed {longest}"
        raise FerrumError("request-too-long", what, args.model, "lower --prompt-tokens or --max-tokens")


def _round(engine: Engine, vocab_size: int, args: argparse.Namespace, seed: int) -> Sample:
    """All sequences at once: random prompts, greedy, end tokens ignored."""
    from ferrum.engine.params import SamplingParams

    rng = random.Random(seed)
    params = SamplingParams(temperature=0.0, max_tokens=args.max_tokens, ignore_eos=True)
    for i in range(args.concurrency):
        engine.add(f"{seed}-{i}", [rng.randrange(vocab_size) for _ in range(args.prompt_tokens)], params)
    started = time.perf_counter()
    first: dict[str, float] = {}
    finished = 0
    while finished < args.concurrency:
        events = engine.step()
        now = time.perf_counter()
        for event in events:
            first.setdefault(event.request_id, now)
            finished += bool(event.finish_reason)
    ended = time.perf_counter()
    prefill = max(first.values()) - started
    decode = ended - max(first.values())
    steps = args.max_tokens - 1
    return Sample(
        prefill_s=prefill,
        decode_s=decode,
        ttft_s=statistics.mean(t - started for t in first.values()),
        tpot_s=decode / steps if steps else 0.0,
        prefill_tokens_per_s=args.concurrency * args.prompt_tokens / prefill,
        decode_tokens_per_s=args.concurrency * steps / decode if steps else 0.0,
    )


def _profile(model: LoadedModel, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds of each kernel in one round, most first; kernels of one spec and shape together."""
    import numpy as np

    from ferrum.devices.base import variant_of
    from ferrum.pack.launch_check import read_table

    profile = getattr(model.executor, "profile", None)
    if profile is None:
        raise FerrumError("bad-option", "the device does not time its kernels", "--profile", "leave it out")
    launches = read_table(model.pack, variant_of(model.executor)).launches
    seconds = np.zeros(len(launches))
    profile(seconds)
    _round(model.generator, model.info.vocab_size, args, args.rounds + 1)
    profile(None)
    found: dict[str, list[float]] = {}
    for launch, value in zip(launches, seconds.tolist(), strict=True):
        found.setdefault(launch.symbol, []).append(value)
    rows = [{"kernel": symbol, "launches": len(values), "seconds": sum(values)} for symbol, values in found.items()]
    return sorted(rows, key=lambda row: -row["seconds"])


def summary(
    samples: Sequence[Sample], roof: dict[str, float], manifest: Manifest, args: argparse.Namespace, variant: str = ""
) -> dict[str, Any]:
    """Medians over the rounds; shares of what the machine's measured limits allow. ``variant``: of the code that ran."""

    def median(name: str) -> float:
        return float(statistics.median(getattr(s, name) for s in samples))

    result: dict[str, Any] = {
        "model": manifest.model.name,
        "target": manifest.target.name,
        "variant": variant if len(manifest.code) > 1 else "",
        "quant": manifest.model.quant,
        "concurrency": args.concurrency,
        "prompt_tokens": args.prompt_tokens,
        "max_tokens": args.max_tokens,
        **{name: median(name) for name in ("prefill_tokens_per_s", "decode_tokens_per_s", "ttft_s", "tpot_s")},
        "roofs": dict(roof),
        "samples": [asdict(s) for s in samples],
    }
    if roof:
        decode, prefill = limits(roof, manifest, args, variant)
        result["roofs"]["decode_tokens_per_s"] = decode
        result["decode_share"] = result["decode_tokens_per_s"] / decode
        if prefill:  # a GPU's arithmetic is not measured here
            result["roofs"]["prefill_tokens_per_s"] = prefill
            result["prefill_share"] = result["prefill_tokens_per_s"] / prefill
    return result


def limits(roof: dict[str, float], manifest: Manifest, args: argparse.Namespace, variant: str = "") -> tuple[float, float]:
    """Tokens/s at the roofline: (decode, prefill), the latter 0 where no rate of arithmetic was measured.

    A decode step reads all weights once and what each sequence sees of its KV cache; prefill does the arithmetic at the best
    rate that the machine has for the weights' format.
    """
    step = build_of(manifest, variant)
    kernels, weights = step.kernels, step.weight_bytes
    activations = sum(k.bytes_per_token for k in kernels)
    flops = sum(k.flops_per_token for k in kernels)
    context = args.prompt_tokens + args.max_tokens / 2
    kv_bytes = sum(group.seen(context) * group.unit_bytes / group.unit for group in kv_groups(manifest))
    rate = 1e12 * max((roof[key] for key in _arithmetic(manifest.model.quant) if key in roof), default=float("inf"))
    read = roof["read_gb_per_s"] * 1e9
    decode = max((weights + args.concurrency * (activations + kv_bytes)) / read, args.concurrency * flops / rate)
    prefill = max(flops / rate, (weights / 512 + activations) / read)
    return args.concurrency / decode, 1 / prefill if rate < float("inf") else 0.0


def _arithmetic(quant: str) -> tuple[str, ...]:
    """The kinds of dot product that serve a weight format."""
    if quant == "f32":
        return ("f32_tflops",)
    floats = ("f32_tflops", "bf16_tflops", "bf16_tile_tflops")
    return floats if quant == "none" else (*floats, "int8_tops", "int8_tile_tops")


def _print(result: dict[str, Any]) -> None:
    rows = [
        ("prefill", f"{result['prefill_tokens_per_s']:.1f} tokens/s", _share(result, "prefill_share")),
        ("decode", f"{result['decode_tokens_per_s']:.1f} tokens/s", _share(result, "decode_share")),
        ("time to first token", f"{result['ttft_s'] * 1e3:.1f} ms", ""),
        ("time per output token", f"{result['tpot_s'] * 1e3:.2f} ms", ""),
    ]
    target = f"{result['target']}, {result['variant']}" if result["variant"] else result["target"]
    print(f"{result['model']} {result['quant']} on {target}: {result['concurrency']} at once, ", end="")
    print(f"{result['prompt_tokens']} + {result['max_tokens']} tokens, median of {len(result['samples'])} rounds")
    print_table(("WHAT", "VALUE", "OF THE ROOFLINE"), rows)
    total = sum(row["seconds"] for row in result.get("kernels", ()))
    if total:
        print_table(
            ("KERNEL", "LAUNCHES", "TIME", "SHARE"),
            [
                (r["kernel"], str(r["launches"]), f"{1e3 * r['seconds']:.2f} ms", f"{100 * r['seconds'] / total:.1f} %")
                for r in result["kernels"]
            ],
        )
    if max(result.get("decode_share", 0), result.get("prefill_share", 0)) > 1:
        print("above 100 %: the model is small enough for the caches, and the roofline is that of memory")
    for key, unit in ROOF_UNITS.items():
        if key in result["roofs"]:
            print(f"roof: {result['roofs'][key]:.2f} {unit}")


def _share(result: dict[str, Any], name: str) -> str:
    return f"{100 * result[name]:.0f} %" if name in result else "-"
