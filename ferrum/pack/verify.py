"""``ferrum verify``: every hash, the signature, the contract, the machine, and the numbers of the self-test."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from ferrum.errors import FerrumError
from ferrum.pack.check import damaged
from ferrum.pack.reader import Pack, PackFile
from ferrum.pack.schema import SelfTest, SelfTestCase
from ferrum.pack.trust import TrustState, default_state_dir, is_recorded, verify_signature

if TYPE_CHECKING:
    from ferrum.devices.base import Executor, StepBuffers

State = Literal["ok", "failed", "skipped"]
Probe: TypeAlias = "Callable[[Executor, SelfTestCase], str]"


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
    first_layer: str = ""  # what the probe says: the first layer that diverges


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
    probe: Probe | None = None,
    progress: Callable[[int], None] | None = None,
    state_dir: Path | None = None,
    config_dir: Path | None = None,
) -> VerifyReport:
    """Check all of a pack and report every finding.

    ``machine`` is (arch, features) of this machine; ``make_executor`` loads the opened pack on a device and is called
    only for ``numeric``, when nothing failed before, and when the pack may run here: built here, signed by a trusted key,
    or ``trust``. ``probe`` is asked about a case that diverges and names the
    first layer at fault. Raises FerrumError only when the file is no readable pack at all.
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
        elif not file.manifest.selftest:
            report.add("numeric", "skipped", "the pack has no self-test")
        elif not report.ok:
            report.add("numeric", "skipped", "the checks before it failed")
        elif state is None and not trust:
            report.add("numeric", "failed", "the pack is neither built here nor signed by a trusted key, so its code is not run")
        else:
            with file.map(state or TrustState("allowed")) as pack:
                _check_numbers(report, pack, make_executor, probe)
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
    where = f"{pack.path}: selftest.json"
    try:
        test = msgspec.json.decode(pack.member("selftest.json"), type=SelfTest)
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


def _check_numbers(report: VerifyReport, pack: Pack, make_executor: Callable[[Pack], Executor], probe: Probe | None) -> None:
    test = read_selftest(pack)
    report.tolerance = test.tolerance
    executor = make_executor(pack)
    try:
        for index, case in enumerate(test.cases):
            found = run_case(executor, case, index, test.tolerance)
            good = found.error <= test.tolerance and found.norm_error <= test.tolerance and found.diverged_at_token < 0
            if not good and probe is not None:
                found = CaseReport(index, found.error, found.norm_error, found.diverged_at_token, probe(executor, case))
            report.cases.append(found)
            if not good:
                report.add("numeric", "failed", _describe(found, test.tolerance))
                return
    finally:
        executor.close()
    worst = max((case.error for case in report.cases), default=0.0)
    report.add("numeric", "ok", f"{len(report.cases)} cases, largest error {worst:.2e} of {test.tolerance:.2e}")


def _describe(case: CaseReport, tolerance: float) -> str:
    text = f"case {case.index}: error {case.error:.2e}, norm {case.norm_error:.2e}, tolerance {tolerance:.2e}"
    if case.diverged_at_token >= 0:
        text += f", another greedy token at {case.diverged_at_token}"
    return f"{text}, first layer {case.first_layer}" if case.first_layer else text


def run_case(executor: Executor, case: SelfTestCase, index: int, tolerance: float) -> CaseReport:
    """Prefill the prompt, compare the last row's logits, then follow the reference's greedy tokens one step each.

    A step agrees when the reference's token is the largest or within ``2 * tolerance`` of it (relative to the largest
    magnitude): two logits that close may legally change places. The reference's token is fed on, so that one such tie
    does not spoil the rest.
    """
    table = _block_table(executor, len(case.tokens) + len(case.greedy))
    largest = executor.limits.max_tokens
    for start in range(0, len(case.tokens), largest):
        chunk = case.tokens[start : start + largest]
        last = start + len(chunk) == len(case.tokens)
        _run(executor, chunk, start, table, sample=last)
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
            _run(executor, [token], len(case.tokens) + step, table, sample=True)
            row = _row(executor)
    return CaseReport(index, error, norm_error, -1)


def _finite(value: float) -> float:
    """NaN compares as false, so it would pass; it counts as infinitely wrong."""
    return float(value) if np.isfinite(value) else float("inf")


def _row(executor: Executor) -> NDArray[np.float32]:
    return np.array(executor.logits()[0], np.float32)


def _block_table(executor: Executor, tokens: int) -> NDArray[np.int32]:
    limits = executor.limits
    blocks = -(-tokens // limits.block_size)
    if blocks > min(limits.num_blocks, limits.max_blocks_per_seq):
        raise FerrumError(
            "memory-too-small", f"a self-test case needs {blocks} KV blocks", "verify", "give the self-test more KV cache memory"
        )
    return np.arange(blocks, dtype=np.int32)


def _run(executor: Executor, tokens: list[int], start: int, table: NDArray[np.int32], sample: bool) -> None:
    """One step with one sequence, greedy, without penalties; ``start`` is the position of the first token."""
    b: StepBuffers = executor.buffers
    n = len(tokens)
    b.num_tokens, b.num_seqs, b.num_samples = n, 1, int(sample)
    b.tokens[:n] = tokens
    b.positions[:n] = np.arange(start, start + n, dtype=np.int32)
    b.query_start[:2] = (0, n)
    b.context_len[0] = start + n
    b.block_table[0, : len(table)] = table
    if sample:
        b.sample_rows[0] = n - 1
        b.top_p[0] = b.repetition_penalty[0] = 1
        b.num_logprobs[0] = -1
        for array in (b.temperature, b.top_k, b.min_p, b.presence_penalty, b.frequency_penalty, b.seed, b.draw, b.use_mask):
            array[0] = 0
        b.penalty_start[:2] = 0
        b.bias_start[:2] = 0
    executor.step()
