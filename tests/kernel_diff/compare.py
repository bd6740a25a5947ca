"""Two renderings of the same entry side by side: kernels in the order of their launches, whatever they are called."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal

from ferrum.errors import FerrumError
from tests.kernel_diff.c_source import entries
from tests.kernel_diff.machine_code import REST
from tests.kernel_diff.renderings import Rendering, Summary, plain_name
from tests.kernel_diff.text import first_difference
from tests.kernel_diff.zoo import Entry

# "code": the machine code differs; "source": only the text does; "text": it does, and no code could be made of it (``why``).
# "plan": a launch or a slot; "added", "removed": a kernel; "error": one of the trees does not render the entry.
Kind = Literal["code", "source", "text", "plan", "added", "removed", "error"]
Codes = Callable[[str, str, list[str]], dict[str, str]]
JOBS = 2


@dataclass(frozen=True)
class Difference:
    """One thing that is not as it was in ``entry``; ``base`` and ``new`` are the first lines that differ."""

    kind: Kind
    entry: Entry
    kernel: str
    base: str = ""
    new: str = ""
    why: str = ""


@dataclass(frozen=True)
class _Pair:
    """A kernel by its symbol in both trees, with the digests of its text."""

    base: str
    new: str
    texts: tuple[str, str]


def same(base: Summary, new: Summary) -> bool:
    """Whether nothing differs; names are for people and do not count."""
    return (
        [d for _, d in base.kernels] == [d for _, d in new.kernels]
        and (base.launches, base.plan, base.rest) == (new.launches, new.plan, new.rest)
    )  # fmt: skip


def compare(pairs: list[tuple[Entry, Rendering, Rendering]], codes: Codes) -> list[Difference]:
    """All differences. ``codes(source, target, symbols)`` gives digests of machine code; it is asked only where texts differ,
    once for each pair of texts and target."""
    found: list[Difference] = []
    waiting: list[tuple[Entry, Rendering, Rendering, list[_Pair]]] = []
    asked: set[tuple[str, tuple[str, str]]] = set()
    for entry, base, new in pairs:
        if base.error or new.error:
            found.append(Difference("error", entry, "", base.error, new.error))
            continue
        matched, others = _match(base, new)
        found += [replace(other, entry=entry) for other in others]
        found += _plan(entry, base, new)
        unlike = [pair for pair in matched if pair.texts[0] != pair.texts[1]]
        waiting.append((entry, base, new, unlike))
    work = []
    for entry, base, new, unlike in waiting:
        fresh = [pair for pair in unlike if (entry.target, pair.texts) not in asked]
        asked |= {(entry.target, pair.texts) for pair in fresh}
        if fresh:
            work.append((entry, base, new, fresh))
    with ThreadPoolExecutor(JOBS) as pool:
        answers = list(pool.map(lambda item: _ask(*item, codes), work))
    verdicts = {key: verdict for answer in answers for key, verdict in answer.items()}
    for entry, base, new, unlike in waiting:
        found += [_difference(entry, base, new, pair, *verdicts[entry.target, pair.texts]) for pair in unlike]
    return found


def _match(base: Rendering, new: Rendering) -> tuple[list[_Pair], list[Difference]]:
    """Kernels of the same place in the order of launches, and those that stand alone."""
    digests = [dict(zip(r.symbols, (d for _, d in r.summary.kernels), strict=True)) for r in (base, new)]
    tables = bool(base.table) and bool(new.table)
    order = [r.launched if tables else entries(r.source) for r in (base, new)]
    lists = [[known[symbol] for symbol in symbols] for symbols, known in zip(order, digests, strict=True)]
    matched: dict[_Pair, None] = {}
    alone: list[tuple[Kind, str]] = []
    spans = [("equal", 0, len(lists[0]), 0, len(lists[1]))]
    if len(lists[0]) != len(lists[1]):
        spans = difflib.SequenceMatcher(None, *lists, autojunk=False).get_opcodes()
    for _, i, i_end, j, j_end in spans:
        for old, now in zip(order[0][i:i_end], order[1][j:j_end], strict=False):
            matched[_Pair(old, now, (digests[0][old], digests[1][now]))] = None
        alone += [("removed", s) for s in order[0][i + (j_end - j) : i_end]]
        alone += [("added", s) for s in order[1][j + (i_end - i) : j_end]]
    if base.has_rest and new.has_rest:
        matched[_Pair(REST, REST, (base.summary.rest, new.summary.rest))] = None
    nowhere = Entry("", "", "")
    return list(matched), [Difference(kind, nowhere, plain_name(s)) for kind, s in dict.fromkeys(alone)]


def _plan(entry: Entry, base: Rendering, new: Rendering) -> Iterator[Difference]:
    if not base.plan_lines:
        return  # a tree from before its plan was dumped whole
    lines = list(zip(base.plan_lines, new.plan_lines, strict=False))
    unlike = next((pair for pair in lines if pair[0] != pair[1]), None)
    if unlike:
        yield Difference("plan", entry, "", *unlike)
    elif len(base.plan_lines) != len(new.plan_lines):
        yield Difference("plan", entry, "", f"{len(base.plan_lines)} launches and slots", f"{len(new.plan_lines)}")


def _ask(
    entry: Entry, base: Rendering, new: Rendering, pairs: list[_Pair], codes: Codes
) -> dict[tuple[str, tuple[str, str]], tuple[Kind, str]]:
    """What machine code says of each pair."""
    try:
        old = codes(base.source, entry.target, [pair.base for pair in pairs])
        now = codes(new.source, entry.target, [pair.new for pair in pairs])
    except FerrumError as error:
        return {(entry.target, pair.texts): ("text", error.what) for pair in pairs}
    return {
        (entry.target, pair.texts): ("source" if old[pair.base] == now[pair.new] else "code", "") for pair in pairs
    }  # fmt: skip


def _difference(entry: Entry, base: Rendering, new: Rendering, pair: _Pair, kind: Kind, why: str) -> Difference:
    old, now = base.closure(pair.base), new.closure(pair.new)
    at = first_difference(old, now)
    return Difference(kind, entry, plain_name(pair.base), base.unit.line(old, at), new.unit.line(now, at), why)
