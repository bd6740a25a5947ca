"""How much processor time masks take: ``python -m tests.bench.masks TOKENIZER.json [SCHEMAS]``, over random schemas."""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

import numpy as np

from ferrum.errors import FerrumError
from ferrum.pack.schema import TextRecord
from ferrum.structured import library
from ferrum.structured.masks import _vocabulary
from ferrum.structured.model import ModelGrammars
from ferrum.structured.wish import Structured
from ferrum.text.tokenizer import Tokenizer
from tests.structured.schemas import schema

TOKENS = 200


def main(arguments: list[str]) -> None:
    tokenizer = Tokenizer(Path(arguments[0]).read_bytes())
    count = int(arguments[1]) if len(arguments) > 1 else 200
    size, end = tokenizer.max_id + 2, tokenizer.max_id + 1
    started = time.thread_time()
    known = _vocabulary(tokenizer, size, [end])
    print(f"vocabulary of {size}: {time.thread_time() - started:.2f} s")
    grammars = ModelGrammars(tokenizer, TextRecord(eos_token_ids=[end]), size)
    compiles: list[float] = []
    masks: list[float] = []
    forced: list[float] = []
    rng = random.Random(0)
    for number in range(count):
        try:
            grammar = grammars.content(Structured(json=schema(number)), "x")
        except FerrumError:
            continue
        started = time.thread_time()
        matcher = library.matcher(grammar, known)
        matcher.compute_bitmask()
        compiles.append(time.thread_time() - started)
        for _ in range(TOKENS):
            started = time.thread_time()
            mask = matcher.compute_bitmask()
            masks.append(time.thread_time() - started)
            allowed = np.flatnonzero(np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little"))
            matcher.consume_token(int(rng.choice(allowed)))
            started = time.thread_time()
            matcher.compute_ff_tokens()
            forced.append(time.thread_time() - started)
            if matcher.is_stopped():
                break
    grammars.close()
    for name, values in (("compile and first mask", compiles), ("mask", masks), ("forced tokens", forced)):
        p50, p90, p99, most = (1e6 * np.percentile(values, [50, 90, 99, 100])).round(0)
        print(f"{name}: {len(values)} times, p50 {p50:.0f} µs, p90 {p90:.0f}, p99 {p99:.0f}, most {most:.0f}")


if __name__ == "__main__":
    main(sys.argv[1:])
