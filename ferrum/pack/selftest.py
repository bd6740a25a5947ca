"""The self-test of a pack as it is read: prompts with the interpreter's answers, and what the layers make of them."""

from __future__ import annotations

import msgspec

from ferrum.pack.check import damaged
from ferrum.pack.layers import LayerTest, read_layer_test
from ferrum.pack.programs import build_of, row_width
from ferrum.pack.reader import Pack
from ferrum.pack.schema import SelfTest


def read_selftest(pack: Pack) -> SelfTest:
    """The self-test of a pack, every number checked. Raises FerrumError naming the field."""
    program = pack.manifest.program()
    name = program.selftest if program else ""
    where = f"{pack.path}: {name or 'programs'}"
    try:
        test = msgspec.json.decode(pack.member(name), type=SelfTest)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise damaged(f"not a self-test: {error}", where) from None
    width = row_width(pack.manifest, program) if program else 0
    vocab, longest = pack.manifest.model.vocab_size, pack.manifest.model.max_model_len
    if not 0 < test.tolerance <= 1:
        raise damaged(f"{test.tolerance} is not between 0 and 1", f"{where}: tolerance")
    for index, case in enumerate(test.cases):
        here = f"{where}: cases[{index}]"
        if not case.tokens or not case.top_tokens or len(case.top_tokens) != len(case.top_logits):
            raise damaged("tokens, top_tokens and top_logits must not be empty, the last two equally long", here)
        if any(not 0 <= token < vocab for token in (*case.tokens, *case.greedy)):
            raise damaged("a token id is not below vocab_size", here)
        if any(not 0 <= column < width for column in case.top_tokens):
            raise damaged(f"a number of top_tokens is not below {width}", here)
        if len(case.tokens) + len(case.greedy) > longest:
            raise damaged(f"more than max_model_len {longest} tokens", here)
    return test


def read_layers(pack: Pack, variant: str = "") -> LayerTest | None:
    """What the layers compute in the self-test, where a variant of the code (empty: the first) shows them; None without them.

    Raises FerrumError naming the field.
    """
    name = build_of(pack.manifest, variant, str(pack.path)).layers
    return read_layer_test(pack.member(name), len(read_selftest(pack).cases), f"{pack.path}: {name}") if name else None
