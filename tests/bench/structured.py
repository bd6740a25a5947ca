"""Throughput with a schema beside that without: ``python -m tests.bench.structured PACK [ROUNDS]``, on a quiet machine.

Sixteen sequences write as many tokens either way: a text within an object, which no grammar can skip ahead in. Rounds take turns,
so that a disturbed minute is in both.
"""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import replace

from ferrum.llm import LLM, SamplingParams
from ferrum.structured.wish import Structured

SEQUENCES = 16
TOKENS = 256
SCHEMA = {
    "type": "object",
    "properties": {"text": {"type": "string", "minLength": 64 * TOKENS}, "number": {"type": "integer"}},
    "required": ["text", "number"],
}


def main(arguments: list[str]) -> int:
    llm = LLM(arguments[0])
    rounds = int(arguments[1]) if len(arguments) > 1 else 5
    free = SamplingParams(temperature=1.0, max_tokens=TOKENS, ignore_eos=True)
    prompts = [f"Sequence {i}: " for i in range(SEQUENCES)]
    found: dict[str, list[float]] = {"free": [], "schema": []}
    for number in range(rounds + 1):
        for name in found:
            params = [replace(free, seed=100 * number + i) for i in range(SEQUENCES)]
            if name == "schema":
                params = [replace(p, structured=Structured(json=SCHEMA, compact=True), ignore_eos=False) for p in params]
            started = time.perf_counter()
            answers = llm.generate(prompts, params)
            seconds = time.perf_counter() - started
            if number:  # the first round compiles the grammar and fills caches
                found[name].append(sum(len(a.token_ids) for a in answers) / seconds)
    llm.close()
    for name, values in found.items():
        print(f"{name}: {statistics.median(values):.0f} tokens/s ({min(values):.0f} to {max(values):.0f})")
    ratios = [with_schema / without for with_schema, without in zip(found["schema"], found["free"], strict=True)]
    print(f"schema to free: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
