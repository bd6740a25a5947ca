"""``make coverage``: every type of `transformers`' causal language models, or its encoders, each in a process of its own.

Outcomes are kept in build/coverage, so a run resumes where the last one stopped: a type is tried again when the compiler or the
runtime has changed since. ``--only`` tries some, ``--result`` those that ended so, ``--keep`` lets outcomes stand, of other trees
as well. ``--encoders`` takes the encoders, whose page is docs/encoders.md.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import multiprocessing
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from ferrum.store import compiler_digest
from tests.coverage.outcomes import FAULT, RUNS, Outcome, append, latest, load
from tests.coverage.page import ENCODERS, HEAD, page, reasons

ROOT = Path(__file__).parents[2]
LIMIT = 240  # seconds that a type may take


def types() -> list[str]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def encoders() -> list[str]:
    """Those that predict masked tokens, and are not an encoder and a decoder of one model."""
    from transformers.models.auto import modeling_auto as auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    both = auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES.keys() & auto.MODEL_MAPPING_NAMES.keys()
    return sorted(kind for kind in both if not CONFIG_MAPPING[kind]().is_encoder_decoder)


def child(kind: str, to: Connection) -> None:
    from tests.coverage.trial import try_kind

    to.send(try_kind(kind))


def encoder_child(kind: str, to: Connection) -> None:
    from tests.coverage.encoder_trial import try_encoder

    to.send(try_encoder(kind))


Target = Callable[[str, Connection], None]


@dataclass(frozen=True)
class Table:
    """What is tried of each of the ``types``, and the page of what came of it. ``of``: what the differences there are of."""

    types: Callable[[], list[str]]
    trial: Target
    kept: Path
    page: Path
    head: str
    of: str


MODELS = Table(types, child, ROOT / "build/coverage/outcomes.jsonl", ROOT / "docs/models.md", HEAD, "a logit")
ENCODES = Table(
    encoders, encoder_child, ROOT / "build/coverage/encoders.jsonl", ROOT / "docs/encoders.md", ENCODERS, "an embedding"
)


@dataclass
class Running:
    kind: str
    process: BaseProcess
    answer: Connection
    started: float


class Trials:
    """Types in processes that are forked from one that has all loaded; ``jobs`` at a time, each with a limit in seconds."""

    def __init__(
        self, jobs: int, limit: float, target: Target = child, preload: Sequence[str] = ("tests.coverage.warm",)
    ) -> None:
        self.jobs, self.limit, self.target = jobs, limit, target
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(list(preload))

    def run(self, kinds: Sequence[str]) -> Iterator[Outcome]:
        """Outcomes as they come."""
        waiting, running = list(kinds), list[Running]()
        while waiting or running:
            while waiting and len(running) < self.jobs:
                running.append(self.start(waiting.pop(0)))
            wait([r.process.sentinel for r in running] + [r.answer for r in running], timeout=1)
            for one in list(running):
                if (outcome := self.outcome(one)) is not None:
                    running.remove(one)
                    yield replace(outcome, seconds=round(time.monotonic() - one.started, 1))

    def start(self, kind: str) -> Running:
        answer, to = self.context.Pipe(duplex=False)
        process = self.context.Process(target=self.target, args=(kind, to), daemon=False)
        process.start()
        to.close()
        return Running(kind, process, answer, time.monotonic())

    def outcome(self, one: Running) -> Outcome | None:
        """What came of it, if it is over; a crash and a lack of an end are faults."""
        if one.answer.poll():
            try:
                found: Outcome = one.answer.recv()
            except EOFError:
                one.process.join()
                return Outcome(one.kind, FAULT, (f"the process ended with status {one.process.exitcode}",))
            one.process.join(timeout=10)
            one.process.kill()
            return found
        if time.monotonic() - one.started > self.limit:
            one.process.kill()
            one.process.join()
            return Outcome(one.kind, FAULT, (f"no end within {self.limit:.0f} seconds",))
        return None


def chosen(every: list[str], known: dict[str, Outcome], tree: str, args: argparse.Namespace) -> list[str]:
    """The types to try."""
    found = [kind for kind in every if re.fullmatch(args.only, kind)]
    if args.result:
        return [kind for kind in found if kind in known and known[kind].result == args.result]
    if args.only != ".*" and not args.keep:
        return found
    return [kind for kind in found if kind not in known or (known[kind].tree != tree and not args.keep)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=".*", help="a pattern of types")
    parser.add_argument("--result", default="", help="types whose last result was this")
    parser.add_argument("--keep", action="store_true", help="outcomes of other trees count")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds for a type")
    parser.add_argument("--encoders", action="store_true", help="encoders, with a page of their own")
    args = parser.parse_args()
    table = ENCODES if args.encoders else MODELS
    every, tree, of = table.types(), compiler_digest()[:12], version("transformers")
    todo = chosen(every, latest(load(table.kept), of), tree, args)
    for number, outcome in enumerate(Trials(args.jobs, args.limit, table.trial).run(todo), 1):
        append(table.kept, replace(outcome, version=of, tree=tree))
        told = "" if outcome.result == RUNS else ": " + "; ".join(outcome.details)[:200]
        print(f"{number}/{len(todo)} {outcome.kind} {outcome.result} {outcome.seconds:.0f} s{told}", flush=True)
    known = latest(load(table.kept), of)
    table.page.write_text(page(every, known, of, table.head, table.of), encoding="utf-8")
    print(f"{sum(o.result == RUNS for o in known.values())} of {len(every)} types run: {table.page.relative_to(ROOT)}")
    for reason, count in reasons(known.values())[:20]:
        print(f"{count:4} {reason}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
