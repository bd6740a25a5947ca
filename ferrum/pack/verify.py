"""Is a pack whole: its structure, every hash, the contract, the signature, and whether it is for this machine."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ferrum.errors import FerrumError
from ferrum.pack.programs import choose_code
from ferrum.pack.reader import PackFile
from ferrum.pack.trust import TrustState, default_state_dir, is_recorded, verify_signature

State = Literal["ok", "failed", "skipped"]


@dataclass(frozen=True)
class Check:
    """One line of a report. ``detail`` says what is wrong, or why the check was skipped."""

    name: str
    state: State
    detail: str = ""


@dataclass
class VerifyReport:
    """All checks in the order they were made; ``ok`` when none failed."""

    path: Path
    checks: list[Check] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return all(check.state != "failed" for check in self.checks)

    def add(self, name: str, state: State, detail: str = "") -> None:
        self.checks.append(Check(name, state, detail))


def verify_pack(
    path: Path | str,
    *,
    machine: tuple[str, Collection[str]] | None = None,
    progress: Callable[[int], None] | None = None,
    state_dir: Path | None = None,
    config_dir: Path | None = None,
) -> VerifyReport:
    """Check all of a pack's file and report every finding. ``machine`` is (arch, features) of this machine.

    Raises FerrumError only when the file is no readable pack at all.
    """
    with PackFile(path) as file:
        report = VerifyReport(file.path)
        verify_file(report, file, machine=machine, progress=progress, state_dir=state_dir, config_dir=config_dir)
    return report


def verify_file(
    report: VerifyReport,
    file: PackFile,
    *,
    machine: tuple[str, Collection[str]] | None = None,
    progress: Callable[[int], None] | None = None,
    state_dir: Path | None = None,
    config_dir: Path | None = None,
) -> TrustState | None:
    """Add the checks of an open file; why its code may run here, None when nobody vouches for it."""
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
    return state


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
    elif len(file.manifest.code) > 1:
        try:
            report.add("machine", "ok", f"takes the variant {choose_code(file.manifest, str(file.path), features).name}")
        except FerrumError as error:
            report.add("machine", "failed", error.what)
    else:
        report.add("machine", "ok")
