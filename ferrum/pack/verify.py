"""``ferrum verify``: every hash, the signature, the contract, the machine, and the numbers of the self-test."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from ferrum.errors import FerrumError
from ferrum.pack.check import damaged
from ferrum.pack.layers import LayerTest, read_layer_test
from ferrum.pack.one_sequence import block_table, chunks, describe
from ferrum.pack.probe import LayerReport, probe_layers, shows_layers
from ferrum.pack.reader import Pack, PackFile
from ferrum.pack.schema import SelfTest, SelfTestCase
from ferrum.pack.trust import TrustState, default_state_dir, is_recorded, verify_signature

if TYPE_CHECKING:
    from ferrum.devices.base import Executor

State = Literal["ok", "failed", "skipped"]


@dataclass(frozen=True)
class Check:
    """One line of a report. ``detail`` says what is wrong, or why the check was skipped."""

    name: str
    state: State
    detail: str = ""


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
class VerifyReport:
    """All checks in the order they were made; ``ok`` when none failed."""

    path: Path
    checks: list[Check] = field(default_factory=list)
    cases: list[CaseReport] = field(default_factory=list)
    tolerance: float = 0.0

    @property
    def ok(self) -> bool:
        return all(check.state != "failed" for check in self.checks)

    def add(self, name: str, state: State, detail: str = "") -> None:
        self.checks.append(Check(name, state, detail))


def verify_pack(
    path: Path | str,
    numeric: bool = False,
    *,
    trust: bool = False,
    make_executor: Callable[[Pack], Executor] | None = None,
    machine: tuple[str, Collection[str]] | None = None,
    progress: Callable[[int], None] | None = None,
    state_dir: Path | None = None,
    config_dir: Path | None = None,
) -> VerifyReport:
    """Check all of a pack and report every finding.

    ``machine`` is (arch, features) of this machine; ``make_executor`` loads the opened pack on a device and is called
    only for ``numeric``, when nothing failed before, and when the pack may run here: built here, signed by a trusted key,
    or ``trust``. Each case is also run layer by layer where the pack has the values and the device can show them, and the
    first layer that diverges is named. Raises FerrumError only when the file is no readable pack at all.
    """
    with PackFile(path) as file:
        report = VerifyReport(file.path)
        report.add("structure", "ok")
        for member in file.manifest.members:
            try:
                file.check_member(member, progress)
                report.add(f"member {member.name}", "ok")
            except FerrumError as error:
                report.add(f"member {member.name}", "failed", error.what)
        report.add("contract", "ok", file.manifest.contract)  # a contract that does not fit is a fault of the structure
        state = _check_trust(report, file, state_dir, config_dir)
        _check_machine(report, file, machine)
        if not numeric or make_executor is None:
            report.add("numeric", "skipped", "not asked for")
        elif not (program := file.manifest.program()) or not program.selftest:
            report.add("numeric", "skipped", "the pack has no self-test")
        elif not report.ok:
            report.add("numeric", "skipped", "the checks before it failed")
        elif state is None and not trust:
            report.add("numeric", "failed", "the pack is neither built here nor signed by a trusted key, so its code is not run")
        else:
            with file.map(state or TrustState("allowed")) as pack:
                _check_numbers(report, pack, make_executor)
    return report


def _check_trust(report: VerifyReport, file: PackFile, state_dir: Path | None, config_dir: Path | None) -> TrustState | None:
    """Reported, but a pack without a signature is not a failed one: who verifies it has not opened it yet."""
    if is_recorded(file.manifest_sha256, state_dir or default_state_dir()):
        report.add("trust", "ok", "built here")
        return TrustState("built-here")
    try:
        state = verify_signature(file.path, file.manifest_sha256, config_dir)
    except FerrumError as error:
        report.add("trust", "skipped" if error.code == "pack-not-trusted" else "failed", error.what)
        return None
    report.add("trust", "ok", f"signed by {state.key}")
    return state


def _check_machine(report: VerifyReport, file: PackFile, machine: tuple[str, Collection[str]] | None) -> None:
    target = file.manifest.target
    if machine is None:
        report.add("machine", "skipped", "this machine's features are not known")
        return
    arch, features = machine
    missing = [feature for feature in target.features if feature not in features]
    if arch != target.arch:
        report.add("machine", "failed", f"the pack is for {target.arch}, this machine is {arch}")
    elif missing:
        report.add("machine", "failed", f"this machine lacks {', '.join(missing)}")
    else:
        report.add("machine", "ok")


def read_selftest(pack: Pack) -> SelfTest:
    """The self-test of a pack, every number checked. Raises FerrumError naming the field."""
    program = pack.manifest.program()
    name = program.selftest if program else ""
    where = f"{pack.path}: {name or 'programs'}"
    try:
        test = msgspec.json.decode(pack.member(name), type=SelfTest)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise damaged(f"not a self-test: {error}", where) from None
    vocab, longest = pack.manifest.model.vocab_size, pack.manifest.model.max_model_len
    if not 0 < test.tolerance <= 1:
        raise damaged(f"{test.tolerance} is not between 0 and 1", f"{where}: tolerance")
    for index, case in enumerate(test.cases):
        here = f"{where}: cases[{index}]"
        if not case.tokens or not case.top_tokens or len(case.top_tokens) != len(case.top_logits):
            raise damaged("tokens, top_tokens and top_logits must not be empty, the last two equally long", here)
        if any(not 0 <= token < vocab for token in (*case.tokens, *case.top_tokens, *case.greedy)):
            raise damaged("a token id is not below vocab_size", here)
        if len(case.tokens) + len(case.greedy) > longest:
            raise damaged(f"more than max_model_len {longest} tokens", here)
    return test


def read_layers(pack: Pack) -> LayerTest | None:
    """What the layers of a pack compute in its self-test; None for a pack without it. Raises FerrumError naming the field."""
    program = pack.manifest.program()
    if program is None or not program.layers:
        return None
    where = f"{pack.path}: {program.layers}"
    return read_layer_test(pack.member(program.layers), len(read_selftest(pack).cases), where)


def _check_numbers(report: VerifyReport, pack: Pack, make_executor: Callable[[Pack], Executor]) -> None:
    test, layers = read_selftest(pack), read_layers(pack)
    report.tolerance = test.tolerance
    executor = make_executor(pack)
    try:
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


def _summary(report: VerifyReport, layers: LayerTest | None) -> str:
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
