"""The self-test of a pack on a device: logits, greedy tokens and the values of layers, beside the interpreter's."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ferrum.devices.base import Executor, variant_of
from ferrum.pack.layers import LayerTest
from ferrum.pack.reader import Pack, PackFile
from ferrum.pack.schema import SelfTestCase
from ferrum.pack.selftest import read_layers, read_selftest
from ferrum.pack.trust import TrustState
from ferrum.pack.verify import VerifyReport, verify_file
from ferrum.proof.one_sequence import block_table, chunks, describe
from ferrum.proof.probe import LayerReport, probe_layers, shows_layers


@dataclass(frozen=True)
class CaseReport:
    """One self-test case. ``error`` is max|logit - reference| / max|reference|; ``token`` counts from the first greedy one."""

    index: int
    error: float
    norm_error: float
    diverged_at_token: int  # -1: never
    layers: LayerReport | None = None  # None: neither pack nor device has them

    def passes(self, tolerance: float) -> bool:
        agrees = self.error <= tolerance and self.norm_error <= tolerance and self.diverged_at_token < 0
        return agrees and (self.layers is None or self.layers.passes)


@dataclass
class ProofReport(VerifyReport):
    """The checks of the file, then the numbers of each case of its self-test."""

    cases: list[CaseReport] = field(default_factory=list)
    tolerance: float = 0.0


def prove_pack(
    path: Path | str,
    make_executor: Callable[[Pack], Executor],
    *,
    trust: bool = False,
    machine: tuple[str, Collection[str]] | None = None,
    progress: Callable[[int], None] | None = None,
    state_dir: Path | None = None,
    config_dir: Path | None = None,
) -> ProofReport:
    """Verify a pack (see ``ferrum.pack.verify``), then run its self-test.

    ``make_executor`` loads the opened pack on a device and is called only when nothing failed before, and when the pack may run
    here: built here, signed by a trusted key, or ``trust``. Each case is also run layer by layer where the pack has the values
    and the device can show them, and the first layer that diverges is named. Raises FerrumError only when the file is no
    readable pack at all.
    """
    with PackFile(path) as file:
        report = ProofReport(file.path)
        state = verify_file(report, file, machine=machine, progress=progress, state_dir=state_dir, config_dir=config_dir)
        if not (program := file.manifest.program()) or not program.selftest:
            report.add("numeric", "skipped", "the pack has no self-test")
        elif not report.ok:
            report.add("numeric", "skipped", "the checks before it failed")
        elif state is None and not trust:
            report.add("numeric", "failed", "the pack is neither built here nor signed by a trusted key, so its code is not run")
        else:
            with file.map(state or TrustState("allowed")) as pack:
                _check_numbers(report, pack, make_executor)
    return report


def _check_numbers(report: ProofReport, pack: Pack, make_executor: Callable[[Pack], Executor]) -> None:
    test = read_selftest(pack)
    report.tolerance = test.tolerance
    executor = make_executor(pack)
    try:
        layers = read_layers(pack, variant_of(executor))
        for index, case in enumerate(test.cases):
            report.cases.append(check_case(executor, case, index, test.tolerance, layers))
            if not report.cases[-1].passes(test.tolerance):
                report.add("numeric", "failed", describe_case(report.cases[-1], test.tolerance))
                return
    finally:
        executor.close()
    report.add("numeric", "ok", _summary(report, layers))


def check_case(executor: Executor, case: SelfTestCase, index: int, tolerance: float, layers: LayerTest | None) -> CaseReport:
    """The answers of a case and, where they can be seen, the values of its layers."""
    found = run_case(executor, case, index, tolerance)
    if layers is not None and shows_layers(executor):
        found = replace(found, layers=probe_layers(executor, case, layers, index))
    return found


def _summary(report: ProofReport, layers: LayerTest | None) -> str:
    worst = max((case.error for case in report.cases), default=0.0)
    text = f"{len(report.cases)} cases, largest error {worst:.2e} of {report.tolerance:.2e}"
    seen = [found for case in report.cases if case.layers for found in case.layers.deviations]
    if layers is None:
        return f"{text}; the pack has no values of its layers"
    if not seen:
        return f"{text}; the device shows no layers"
    return f"{text}; {len(layers.points)} values of layers, largest deviation {max(seen):.1e} of {layers.limit:.1e}"


def describe_case(case: CaseReport, tolerance: float) -> str:
    """What differs in a case, the first layer at fault before anything else."""
    text = f"case {case.index}: error {case.error:.2e}, norm {case.norm_error:.2e}, tolerance {tolerance:.2e}"
    if case.diverged_at_token >= 0:
        text += f", another greedy token at {case.diverged_at_token}"
    return f"{case.layers}; {text}" if case.layers else text


def run_case(executor: Executor, case: SelfTestCase, index: int, tolerance: float) -> CaseReport:
    """Prefill the prompt, compare the last row's logits, then follow the reference's greedy tokens one step each.

    A step agrees when the reference's token is the largest or within ``2 * tolerance`` of it (relative to the largest
    magnitude): two logits that close may legally change places. The reference's token is fed on, so that one such tie
    does not spoil the rest.
    """
    table = block_table(executor, len(case.tokens) + len(case.greedy))
    for start, tokens, last in chunks(executor, case.tokens):
        describe(executor, tokens, start, table, sample=last)
        executor.step()
    row = _row(executor)
    reference = np.array(case.top_logits, np.float32)
    scale = float(np.abs(reference).max()) or 1.0
    error = _finite(np.abs(row[case.top_tokens] - reference).max() / scale)
    norm = float(np.linalg.norm(row.astype(np.float64)))
    norm_error = _finite(abs(norm - case.logit_norm) / (case.logit_norm or 1.0))
    for step, token in enumerate(case.greedy):
        gap = _finite((row.max() - row[token]) / (float(np.abs(row).max()) or 1.0))
        if gap > 2 * tolerance:
            return CaseReport(index, error, norm_error, step)
        if step + 1 < len(case.greedy):
            describe(executor, [token], len(case.tokens) + step, table, sample=True)
            executor.step()
            row = _row(executor)
    return CaseReport(index, error, norm_error, -1)


def _finite(value: float) -> float:
    """NaN compares as false, so it would pass; it counts as infinitely wrong."""
    return float(value) if np.isfinite(value) else float("inf")


def _row(executor: Executor) -> NDArray[np.float32]:
    return np.array(executor.logits()[0], np.float32)
