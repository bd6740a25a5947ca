"""Manifests edited at random, run with ``--trust``: each is one line of refusal, or runs as if nothing had happened.

``python -m tests.pack.forged PACK COUNT SEED``: a process of its own, since what is looked for is the death of one.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from ferrum.devices.cpu import CpuDevice
from ferrum.devices.options import DeviceOptions
from ferrum.errors import FerrumError
from ferrum.pack.check import contract_hash
from ferrum.pack.reader import open_pack
from ferrum.pack.schema import Manifest
from ferrum.pack.selftest import read_selftest
from ferrum.proof.numbers import run_case
from tests.pack.build import parts_of, with_manifest

_NUMBERS = (0, 1, 2, 3, 7, 15, 17, 64, 255, 4096, 1 << 16, (1 << 31) - 1, 1 << 31, 1 << 40, 1 << 48, 1 << 62, -1, -(1 << 40))
_WORDS = ("", "x", "kv", "f32", "step", "window", "slot", "weights", "code/step.so", "step/graph.txt", "../x", "a" * 300)


def leaves(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The paths of all numbers, words and lists below ``value``."""
    if isinstance(value, dict | list):
        if path:
            yield path
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, (*path, key))
    else:
        yield path


def other_values(old: Any) -> list[Any]:
    match old:
        case bool() | None:
            return [not old, 0, 5, "x"]
        case int():
            return [*_NUMBERS, old + 1, old - 1, old * 2, old // 2]
        case str():
            return list(_WORDS)
        case list():
            return [[], old[:-1], old + old[:1], old[::-1]]
        case dict():
            return [{}, {"x": 1}, dict(list(old.items())[1:])]
    return [0.0, -1.0, 1e308]


def forge(manifest: dict[str, Any], rng: random.Random) -> str:
    """Change one place of ``manifest``; with even odds the contract is made to fit again, as an attacker would. What was done."""
    # few places are numbers of the states or the model, and many are arrays of a step: every field gets its share
    by_section: dict[str, list[tuple[str | int, ...]]] = {}
    for path in leaves(manifest):
        by_section.setdefault(str(path[0]), []).append(path)
    candidates: list[Any] = []
    while not candidates:
        path = rng.choice(by_section[rng.choice(sorted(by_section))])
        *parents, last = path
        record: Any = manifest
        for key in parents:
            record = record[key]
        old = record[last]
        candidates = [new for new in other_values(old) if new != old or type(new) is not type(old)]
    record[last] = new = rng.choice(candidates)
    if path[0] != "contract" and rng.random() < 0.5:
        try:
            made = msgspec.convert(manifest, Manifest)
            manifest["contract"] = contract_hash(made.tensors, made.states, made.model.vocab_size, made.model.max_model_len)
        except msgspec.ValidationError:
            pass
    return f"{'.'.join(map(str, path))}: {old!r:.60} -> {new!r:.60}"


def outcome(path: Path) -> str:
    """Open, load and run the self-test with ``--trust``; the one line of an error, or nothing."""
    try:
        with open_pack(path, trust=True) as pack:
            case = read_selftest(pack).cases[0]
            executor = CpuDevice().load(pack, DeviceOptions(max_seqs=2, max_tokens=32, num_threads=1, kv_cache_bytes=1 << 20))
            try:
                run_case(executor, case, 0, 1.0)
            finally:
                executor.close()
    except FerrumError as error:
        text = str(error)
        assert text.isprintable() and text.count("\n") == 0, text
        return text
    return ""


def main(pack: str, count: str, seed: str) -> None:
    parts, rng = parts_of(Path(pack)), random.Random(int(seed))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "forged.fpk"
        for _ in range(int(count)):
            manifest = msgspec.json.decode(parts[0].data.rstrip(b" "))
            done = forge(manifest, rng)
            print(json.dumps(done), flush=True)  # before it runs: the last line names what killed the process
            path.write_bytes(with_manifest(parts, lambda _, m=manifest: msgspec.json.encode(m, order="sorted")))
            print(json.dumps(outcome(path)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
