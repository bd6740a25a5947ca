"""What a change does to generated kernels: ``make kernel-diff [AGAINST=REV]``; docs/kernel-changes.md says how to read it.

The zoo is rendered by the working tree and compared with what ``base.json`` remembers, or with REV as it renders the same zoo.
Ends with 1 when machine code, launches or slots differ and docs/kernel-changes.md does not name the change.
"""

from __future__ import annotations

import argparse
import fnmatch
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from tests.kernel_diff.base import BASE, store, stored
from tests.kernel_diff.compare import JOBS, Difference, compare, same
from tests.kernel_diff.machine_code import code_digests
from tests.kernel_diff.renderings import Rendering
from tests.kernel_diff.report import lines, read_changes, surprises
from tests.kernel_diff.trees import ROOT, check_out, commit_of, render_trees
from tests.kernel_diff.zoo import ZOO, Entry

CACHE = ROOT / "build" / "kernel-diff"


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="python -m tests.kernel_diff", description=__doc__)
    result.add_argument("--against", default="", metavar="REV", help="compare with this revision (default: the stored rendering)")
    result.add_argument("--only", default="*", metavar="PATTERN", help="entries to render, as a pattern of TARGET.FORMAT.MODEL")
    result.add_argument("--details", action="store_true", help="name every rendering that differs")
    result.add_argument("--store", action="store_true", help=f"write this tree's rendering to {BASE.name} instead")
    return result


def read_all(folder: Path, entries: list[Entry]) -> dict[Entry, Rendering]:
    """Renderings with their digests, which several processes take."""
    with ProcessPoolExecutor(JOBS) as pool:
        return dict(zip(entries, pool.map(read_one, [folder / e.name for e in entries], chunksize=4), strict=True))


def read_one(folder: Path) -> Rendering:
    rendering = Rendering.read(folder)
    summary = rendering.summary
    # the parsed source is large, and needed only where something differs
    fresh = Rendering(rendering.source, rendering.plan, rendering.error)
    fresh.__dict__["summary"] = summary
    return fresh


def against_revision(revision: str, entries: list[Entry], work: Path) -> list[Difference]:
    base = check_out(revision, work / "base")
    render_trees({ROOT: work / "new-out", base: work / "base-out"}, entries, work / "models")
    new, old = read_all(work / "new-out", entries), read_all(work / "base-out", entries)
    return compare([(entry, old[entry], new[entry]) for entry in entries], partial(code_digests, cache_folder=CACHE))


def against_stored(entries: list[Entry], work: Path) -> list[Difference]:
    """As above, but the other tree renders only what differs from its digests."""
    known = stored()
    render_trees({ROOT: work / "new-out"}, entries, work / "models")
    new = read_all(work / "new-out", entries)
    unlike = [e for e in entries if e.name in known and (new[e].error or not same(known[e.name], new[e].summary))]
    if not unlike:
        return []
    commit = commit_of(BASE)
    base = check_out(commit, work / "base")
    render_trees({base: work / "base-out"}, unlike, work / "base-models")
    old = read_all(work / "base-out", unlike)
    return compare([(entry, old[entry], new[entry]) for entry in unlike], partial(code_digests, cache_folder=CACHE))


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    entries = [entry for entry in ZOO if fnmatch.fnmatchcase(entry.name, args.only)]
    with tempfile.TemporaryDirectory(prefix="kernel-diff-") as folder:
        work = Path(folder)
        try:
            if args.store:
                render_trees({ROOT: work / "out"}, list(ZOO), work / "models")
                store(read_all(work / "out", list(ZOO)))
                return 0
            found = against_revision(args.against, entries, work) if args.against else against_stored(entries, work)
        except (LookupError, RuntimeError, ValueError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    changes = read_changes(earlier=bool(args.against))
    print("\n".join(lines(found, changes, len(entries), args.details)))
    return int(bool(surprises(found, changes)))


if __name__ == "__main__":
    sys.exit(main())
