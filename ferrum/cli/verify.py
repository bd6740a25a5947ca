"""``ferrum verify``: every hash, the signature, the machine and, with --numeric, the answers of a pack."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ferrum.cli.arguments import add_variant
from ferrum.cli.output import print_json, print_table
from ferrum.errors import EXIT_FAILURE, FerrumError

if TYPE_CHECKING:
    from ferrum.pack.verify import VerifyReport


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pack", metavar="PACK", help="a .fpk file")
    parser.add_argument("--numeric", action="store_true", help="run the pack and compare answers and layers with what is in it")
    parser.add_argument("--trust", action="store_true", help="run a pack that was neither built here nor signed")
    add_variant(parser)


def run(args: argparse.Namespace) -> int:
    from ferrum.cli.machine import machine_for
    from ferrum.pack.reader import read_manifest
    from ferrum.pack.verify import verify_pack
    from ferrum.proof.numbers import ProofReport, prove_pack

    path = Path(args.pack)
    if not path.is_file():
        raise FerrumError("pack-missing", "there is no such pack", args.pack, "check the path")
    machine = machine_for(read_manifest(path).target)
    report: VerifyReport
    if args.numeric:
        report = prove_pack(path, load_small, trust=args.trust, machine=machine)
    else:
        report = verify_pack(path, machine=machine)
        report.add("numeric", "skipped", "not asked for")
    check_calls(report, trust=args.trust)
    if args.json:
        checks = [{"name": c.name, "state": c.state, "detail": c.detail} for c in report.checks]
        print_json({"path": str(path), "ok": report.ok, "checks": checks})
    else:
        print_table(("CHECK", "STATE", "DETAIL"), [(c.name, c.state, c.detail) for c in report.checks])
    if report.ok:
        return 0
    bad = next(c for c in report.checks if c.state == "failed")
    if args.json:
        return EXIT_FAILURE
    not_run = bad.name == "numeric" and isinstance(report, ProofReport) and not report.cases
    next_step = "sign it, or add --trust" if not_run else "copy or build the pack again"
    raise FerrumError("pack-verify-failed", f"{bad.name}: {bad.detail or 'failed'}", str(path), next_step)


def check_calls(report: VerifyReport, *, trust: bool) -> None:
    """Whether the calls that the pack's chat template writes are those that the pack's tool format reads."""
    from ferrum.pack.reader import open_pack
    from ferrum.text.template_process import pack_templates
    from ferrum.text.tool_probe import find_tool_format

    if not report.ok:
        return
    try:
        with open_pack(report.path, trust=trust) as pack:
            named, template = pack.manifest.text.tool_format, pack_templates(pack)
    except FerrumError as error:
        report.add("tool calls", "skipped", error.what)
        return
    if template is None:
        return
    with template:
        found, reason = find_tool_format(template)
    if found == named:
        report.add("tool calls", "ok", named or reason)
    else:
        report.add("tool calls", "failed", f"the template writes them as {found or 'nothing known'}, not as {named or 'none'}")


def load_small(pack: Any) -> Any:
    """The pack on its device with room for one short sequence."""
    from ferrum.devices.options import DeviceOptions
    from ferrum.engine.load import find_device
    from ferrum.pack.programs import kv_groups

    groups = kv_groups(pack.manifest)
    blocks = -(-pack.manifest.model.max_model_len // groups[0].unit)
    room = min(blocks, 64) * sum(group.unit_bytes for group in groups)
    return find_device(pack.manifest.target.device).load(pack, DeviceOptions(max_seqs=1, max_tokens=64, kv_cache_bytes=room))
