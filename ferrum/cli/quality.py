"""The quality card of a pack in words: for ``explain --quality``, ``list -v`` and what ``compile`` says at its end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ferrum.cli.output import print_json, print_table
from ferrum.errors import FerrumError, one_line

if TYPE_CHECKING:
    from ferrum.pack.quality import QualityCard
    from ferrum.pack.reader import Pack
    from ferrum.pack.schema import Manifest

_MEASURED = {
    "code": "the pack's own code, on the machine that compiled it",
    "weights": "the interpreter, from the stored weights: what rounding activations and the cache costs is not in it",
}


def show_quality(pack: Pack, as_json: bool) -> None:
    """Raises FerrumError for a pack without a card."""
    import msgspec

    from ferrum.pack.quality import is_quantized, read_quality

    manifest, card = pack.manifest, read_quality(pack)
    if card is None:
        if not is_quantized(manifest):
            raise FerrumError("quality-missing", "nothing in the pack is quantized, so there is no card", str(pack.path))
        step = "compile a model that has a tokenizer, without --no-prove"
        raise FerrumError("quality-missing", "the pack has no quality card", str(pack.path), step)
    if as_json:
        print_json(msgspec.to_builtins(card) | {"bad": card.bad})
        return
    print(f"{manifest.model.name}, weights {manifest.model.quant}, on {manifest.target.name}")
    print_table(("WHAT", "VALUE"), _rows(pack, card))


def _rows(pack: Pack, card: QualityCard) -> list[tuple[str, str]]:
    from ferrum.pack.selftest import read_selftest

    program, blocks = pack.manifest.program(), one_line(pack.manifest.provenance.blocks)
    rows = [
        ("KL(model || pack)", f"{card.kl_mean:.3g} nats a token, {card.kl_p99:.3g} at the 99th percentile"),
        ("top-1 agreement", f"{100 * card.top1:.1f} %"),
        ("perplexity", f"{card.perplexity:.4g}, of the model {card.perplexity_unquantized:.4g}"),
        ("positions", f"{card.positions} of the texts that ferrum ships"),
        ("measured by", _MEASURED[card.measured]),
        ("beside", "the checkpoint's numbers in float32" + (f", as they were quantized before: {blocks}" if blocks else "")),
        ("verdict", _verdict(card) or "near its model"),
    ]
    if program and program.selftest:
        cases = read_selftest(pack).cases
        tokens = sum(len(case.greedy) for case in cases)
        rows.append(("known answers", f"{tokens} tokens after {len(cases)} prompts: ferrum verify --numeric"))
    return rows


def _verdict(card: QualityCard) -> str:
    from ferrum.pack.quality import BAD_KL, BAD_TOP1

    if not card.bad:
        return ""
    return f"bad: more than KL {BAD_KL} or less than top-1 {100 * BAD_TOP1:.0f} %; a format of more bits loses less"


def quality_note(path: Path) -> str:
    """What a user should know of a pack that was just compiled; empty where nothing is quantized."""
    from ferrum.pack.quality import is_quantized, read_quality
    from ferrum.pack.reader import open_pack

    with open_pack(path, trust=True) as pack:
        card, manifest = read_quality(pack), pack.manifest
    if card is None:
        return f"quality: not measured, {_unmeasured(manifest)}" if is_quantized(manifest) else ""
    beyond = "" if card.measured == "code" else ", of the weights alone"
    verdict = f"; {_verdict(card)}" if card.bad else ""
    return f"quality: {card} over {card.positions} positions{beyond}{verdict}"


def _unmeasured(manifest: Manifest) -> str:
    program = manifest.program()
    if program is not None and program.whole:
        return "as there are cards only of models that predict tokens"
    if program is None or not program.selftest:
        return "as the pack was not proved"
    return "as no text can be given to the model, or the pack's code cannot run here"


def short_quality(path: Path) -> str:
    """The card in a few words; empty for a pack without one, or one that cannot be read."""
    from ferrum.pack.quality import read_quality
    from ferrum.pack.reader import open_pack

    try:
        with open_pack(path, trust=True) as pack:
            card = read_quality(pack)
    except (FerrumError, OSError):
        return ""
    return f"{card}{', bad' if card.bad else ''}" if card else ""
