"""``ferrum diff``: where two packs differ, how far the answers of one are from the other's, and how fast both are here."""

from __future__ import annotations

import argparse
import statistics
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ferrum.cli.arguments import add_load_choices
from ferrum.cli.output import print_json, print_table
from ferrum.errors import FerrumError

if TYPE_CHECKING:
    from ferrum.devices.base import Executor
    from ferrum.pack.reader import Pack

_TOKENS = 128  # of each text
_AT_ONCE = 4  # texts: logits of more would be most of the memory
_ROUNDS, _STEPS = 3, 24  # turns of each pack, steps that are timed in one


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("first", metavar="A.fpk", help="the pack that is taken as right")
    parser.add_argument("second", metavar="B.fpk", help="the pack that is compared with it")
    parser.add_argument("--text", metavar="FILE", help="compare them on this text, in pieces of 128 tokens")
    parser.add_argument("--static", action="store_true", help="compare what the packs hold and run neither")
    add_load_choices(parser)


def run(args: argparse.Namespace) -> int:
    from ferrum.cli.differences import differences
    from ferrum.pack.reader import open_pack

    for path in (args.first, args.second):
        if not Path(path).is_file():
            raise FerrumError("pack-missing", "there is no such pack", path, "check the path")
    with ExitStack() as opened:
        first, second = (opened.enter_context(open_pack(p, trust=args.trust or args.static)) for p in (args.first, args.second))
        found = differences(first, second)
        result: dict[str, Any] = {"differences": [{"what": what, "a": left, "b": right} for what, left, right in found]}
        if not args.static:
            result |= _measured(first, second, args.text, args.threads)
    if args.json:
        print_json(result)
        return 0
    if found:
        print_table(("WHAT", "A", "B"), found)
    else:
        print("the packs say the same of themselves")
    if not args.static:
        print()
        print_table(("MEASURED", "VALUE"), _rows(result))
    return 0


def _measured(first: Pack, second: Pack, text: str | None, threads: int) -> dict[str, Any]:
    """Both packs on this machine, loaded side by side. Raises FerrumError where one cannot run or the numbers do not compare."""
    from ferrum.engine.load import find_device
    from ferrum.proof.quality import Distance, Texts, card_of, room_for, text_logits

    pieces, distance = _common_pieces(first, second, text), Distance()
    steps = [Texts(pieces[at : at + _AT_ONCE]) for at in range(0, len(pieces), _AT_ONCE)]
    widest = Texts([max(pieces, key=len)] * len(steps[0].ids))  # has room for each of the steps
    with ExitStack() as loaded:
        both: list[Executor] = []
        for pack in (first, second):
            device = find_device(pack.manifest.target.device)
            both.append(device.load(pack, room_for(pack.manifest, widest, threads)))
            loaded.callback(both[-1].close)
        for texts in steps:
            distance.add(text_logits(both[0], texts), text_logits(both[1], texts), texts)
        speeds = _speeds(both, widest.read[0])
    card = card_of(distance)
    quality = {
        "positions": card.positions,
        "kl_mean": card.kl_mean,
        "kl_p99": card.kl_p99,
        "top1": card.top1,
        "perplexity_a": card.perplexity_unquantized,
        "perplexity_b": card.perplexity,
    }
    return {"quality": quality, "speed": speeds}


def _common_pieces(first: Pack, second: Pack, text: str | None) -> list[list[int]]:
    """The tokens of the texts, which must be the same to both packs."""
    from ferrum.text.given_text import read_given
    from ferrum.text.sample_text import pieces_of, sample_tokens
    from ferrum.text.tokenizer import Tokenizer

    given = read_given(text) if text is not None else ""
    where, longest = f"{first.path}, {second.path}", min(p.manifest.model.max_model_len for p in (first, second))
    ids: list[list[list[int]]] = []
    for pack in (first, second):
        if "tokenizer.json" not in pack:
            step = "add --static to compare what the packs hold"
            raise FerrumError("no-tokenizer", "the pack has no tokenizer, so it reads no text", str(pack.path), step)
        tokenizer = Tokenizer(pack.member("tokenizer.json"))
        known, most = pack.manifest.model.vocab_size, min(_TOKENS, longest)
        ids.append(pieces_of(tokenizer, given, known, most) if text is not None else sample_tokens(tokenizer, known, most))
    if text is not None and not all(ids):
        raise FerrumError("text-unreadable", "the text has fewer than two tokens", text, "give a longer one")
    sizes = {pack.manifest.model.vocab_size for pack in (first, second)}
    if len(sizes) > 1 or ids[0] != ids[1] or not ids[0]:
        what = "their vocabularies differ, so what one predicts says nothing of the other"
        raise FerrumError("packs-incomparable", what, where, "add --static to compare what the packs hold")
    return ids[0]


def _speeds(both: list[Executor], prompt: list[int]) -> dict[str, Any] | None:
    """Tokens/s of one sequence, the packs in turns so that what else the machine does meets both alike; None for a context that
    has no room for three tokens."""
    if len(prompt) < 3:
        return None
    samples = [[_tokens_per_s(executor, prompt) for executor in both] for _ in range(_ROUNDS)]
    a, b = (statistics.median(pair[side] for pair in samples) for side in (0, 1))
    ratio = statistics.median(pair[1] / pair[0] for pair in samples)
    return {"a_tokens_per_s": a, "b_tokens_per_s": b, "b_over_a": ratio, "samples": samples}


def _tokens_per_s(executor: Executor, prompt: list[int]) -> float:
    """Decoding the last tokens of a prompt, which are known; the first step, which wakes threads, is not timed."""
    from ferrum.proof.one_sequence import block_table, describe

    known = max(1, len(prompt) - _STEPS - 1)
    table = block_table(executor, len(prompt))
    describe(executor, prompt[:known], 0, table, sample=True)
    executor.step()
    started = 0.0
    for at in range(known, len(prompt)):
        describe(executor, [prompt[at]], at, table, sample=True)
        executor.step()
        started = started or time.perf_counter()
    return (len(prompt) - known - 1) / (time.perf_counter() - started)


def _rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    quality, speed = result["quality"], result["speed"]
    rows = [
        ("KL(A || B)", f"{quality['kl_mean']:.3g} nats a token, {quality['kl_p99']:.3g} at the 99th percentile"),
        ("top-1 agreement", f"{100 * quality['top1']:.1f} % of {quality['positions']} positions"),
        ("perplexity", f"A {quality['perplexity_a']:.4g}, B {quality['perplexity_b']:.4g}"),
    ]
    if speed:
        rates = f"A {speed['a_tokens_per_s']:.1f}, B {speed['b_tokens_per_s']:.1f} tokens/s"
        rows.append(("decode", f"{rates}: B is {speed['b_over_a']:.2f} of A"))
    return rows
