"""The pages of models: which types of `transformers` run, how that was tried, and what the others lack."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from tests.coverage.outcomes import MEANINGS, MISSING, RUNS, Outcome

WIDE = 160

HEAD = """# Models

Made by `make coverage`, which takes each type of `transformers`' causal language models: a tiny model with random weights, one
layer of each kind, is saved as a folder, checked, compiled for this CPU in float32, proved and run. It *runs* if the logits of
prompts of 1 to 90 tokens are those of `transformers` within 1e-4, and 32 greedy tokens of all of them in one batch are its best
at each step, or within twice the tolerance of the best, with prompts in chunks of 64, 7 and 1. Each type has a process of its
own with a time limit. What a tiny model does not show: real weights, long contexts, quantized formats (other tests have those
for some types), GPUs, for which few of these types have kernels yet (`ferrum check MODEL --target cuda-sm89` says which ops
lack one). Types whose attention is to keys that an indexer chooses (DeepSeek V3.2 was the first) run for as long as it chooses
all of them: `ferrum check` of a model with a longer context gives the `--max-model-len` up to which that is so.

Types with a record of ours (Llama, Mistral, Qwen2, Qwen3: `ferrum/families.py`) are compiled from it and have the fastest
kernels; all others are traced from `transformers`' own module. GGUF files are another matter: [checkpoints.md](checkpoints.md).
"""

ENCODERS = """# Encoders

Made by `make coverage COVERAGE=--encoders`, which takes each encoder of `transformers` that predicts masked tokens and is no
half of a translator: a tiny model with random weights is saved as a folder, checked, compiled for this CPU in float32 with
`--pooling mean`, proved and run. It *runs* if the embeddings of texts of 1 to 90 tokens are within 1e-4 of the normalized means
of `transformers`' own rows, and have the same bits in one step and alone. What a folder says of its pooling and prompts, and a
real model, is in [embeddings.md](embeddings.md).
"""


def page(types: Iterable[str], outcomes: Mapping[str, Outcome], version: str, head: str = HEAD, of: str = "a logit") -> str:
    """``outcomes`` by type; a type without one was not tried. ``of``: what the differences are of."""
    types = sorted(types)
    tried = [outcomes[kind] for kind in types if kind in outcomes]
    counts = Counter(outcome.result for outcome in tried)
    lines = [
        head,
        f"transformers {version}: {counts[RUNS]} of {len(types)} types run.",
        "",
        "| result | types | meaning |",
        "|---|---|---|",
    ]
    lines += [f"| {result} | {counts[result]} | {meaning} |" for result, meaning in MEANINGS.items()]
    if rest := len(types) - len(tried):
        lines.append(f"| not tried | {rest} | |")
    lines += ["", stamp(tried), "", "## Types that run", ""]
    lines += [f"The largest difference of {of} follows each name.", ""]
    lines += [", ".join(f"`{o.kind}` {o.details[0]}" for o in tried if o.result == RUNS) + ".", ""]
    for result in [r for r in MEANINGS if r != RUNS and counts[r]]:
        lines += [f"## {result.capitalize()}", "", "| type | what |", "|---|---|"]
        lines += [f"| `{o.kind}` | {cell(o.details)} |" for o in tried if o.result == result]
        lines.append("")
    if rest:
        lines += ["## Not tried yet", "", ", ".join(f"`{kind}`" for kind in types if kind not in outcomes) + "."]
    return "\n".join(lines).rstrip() + "\n"


def stamp(tried: list[Outcome]) -> str:
    """Of which trees the outcomes are."""
    trees = Counter(outcome.tree for outcome in tried)
    told = ", ".join(f"`{tree}` ({count} types)" for tree, count in trees.most_common())
    return f"Digests of the compiler and runtime that were tried: {told or 'none'}."


def cell(details: tuple[str, ...]) -> str:
    """In one line of a table, without what differs from machine to machine."""
    text = "; ".join(details).replace("|", "\\|").replace("\n", " ")
    text = re.sub(r"/[\w./-]+/", "", text)
    text = re.sub(r"0x[0-9a-f]+", "0x..", text)
    return text if len(text) <= WIDE else text[: WIDE - 2].rstrip() + " …"


def reasons(outcomes: Iterable[Outcome]) -> list[tuple[str, int]]:
    """The first finding of each type that lacks something, by how many types have it first."""
    first = (
        re.sub(r" \(\d+ times\)| in [\w.]+ \S+\.py:\d+", "", o.details[0]) for o in outcomes if o.result == MISSING and o.details
    )
    return Counter(first).most_common()
