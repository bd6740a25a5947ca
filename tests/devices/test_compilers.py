"""Running a compiler: what it makes, and what is left and told when it fails."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from ferrum.codegen.toolchains import cxx
from ferrum.devices.compilers import SourceFile, answer, complaint, run, version_line
from ferrum.devices.host import machine_arch
from ferrum.errors import FerrumError


def test_the_result_lies_beside_the_source() -> None:
    assert SourceFile("words", "a.c").compile("cp", ("cp", "a.c", "a.o"), "a.o") == b"words"


def test_a_failure_leaves_all_that_is_needed_to_repeat_it(tmp_path: Path) -> None:
    keep = tmp_path / "kept"
    script = "echo first; echo an error of a.c; exit 1"
    with pytest.raises(FerrumError) as caught:
        SourceFile("words", "a.c", keep).compile("the compiler", ("sh", "-c", script, "a.c"), "a.o")
    assert caught.value.code == "toolchain-failed" and caught.value.what == "the compiler failed: an error of a.c"
    assert caught.value.where == str(keep / "a.c") and caught.value.next_step.endswith(f" {keep / 'a.c'}")
    assert (keep / "a.c").read_text() == "words" and (keep / "stderr.txt").read_text() == "first\nan error of a.c\n"


def test_without_a_folder_a_failure_makes_one() -> None:
    with pytest.raises(FerrumError, match="sh failed: no output") as caught:
        SourceFile("words", "a.c").compile("sh", ("sh", "-c", "exit 1"), "a.o")
    saved = Path(caught.value.where)
    assert saved.read_text() == "words"
    for path in (saved, saved.parent / "stderr.txt"):
        path.unlink()
    saved.parent.rmdir()


def test_what_does_not_answer_says_nothing(tmp_path: Path) -> None:
    assert version_line(str(tmp_path / "none")) == answer(("sh", "-c", "echo words; exit 1")) == ""
    assert answer(("echo", " one ")) == "one" and complaint("a\nb") == "a"


def test_a_cache_that_loses_a_file_is_asked_once_more(tmp_path: Path) -> None:
    """zig's own; a source's fault is told at once."""
    lost = "echo x >> tries; test $(wc -l < tries) = 2 || { echo \"error: error opening 'zig-cache/tmp/a.o.d'\" >&2; exit 1; }"
    assert run(("sh", "-c", lost), tmp_path).returncode == 0
    assert run(("sh", "-c", "echo x >> others; echo error >&2; exit 1"), tmp_path).returncode == 1
    assert (tmp_path / "others").read_text() == "x\n"


@pytest.mark.parametrize(
    ("version", "plain", "tiles"), [("8.5.0", False, False), ("10.2.1", True, False), ("12.2.0", True, True)]
)
def test_a_compiler_is_new_enough(
    version: str, plain: bool, tiles: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An old one is passed over; without another, a line says what to install."""
    (tmp_path / "gcc").write_text(f"#!/bin/sh\necho 'gcc (made up) {version}'\n")
    (tmp_path / "gcc").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(cxx, "_zig_compiler", lambda: None)
    for wanted, taken, oldest in ((False, plain, 9), (True, tiles, 11)):
        find = partial(cxx.find_compiler.__wrapped__, machine_arch(), wanted)
        if taken:
            assert find().version.endswith(version)
            continue
        with pytest.raises(FerrumError) as caught:
            find()
        assert caught.value.code == "no-compiler" and caught.value.next_step.startswith(f"install gcc {oldest} or clang")
