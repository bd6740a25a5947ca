from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferrum.errors import FerrumError
from ferrum.pack.names import check_relative_path, is_label, is_member_name, is_sha256, is_tensor_name, resolve_inside


def test_member_names() -> None:
    good = ("weights", "code/step.so", "manifest.json", "chat_template.jinja", "_x", "0", "a.b-c")
    bad = ("", ".", "..", "/", "/a", "a/", "a//b", "a/../b", ".a", "a/.b", "-a", "A", "a b", "a\n", "a\\b", "é", "a:b", "a" * 201)
    assert all(is_member_name(name) for name in good)
    assert not any(is_member_name(name) for name in bad)


@given(st.text(max_size=30))
def test_member_names_stay_inside(name: str) -> None:
    if is_member_name(name):
        assert os.path.normpath(os.path.join("/root", name)) == f"/root/{name}" and name.isascii() and name == name.lower()


def test_other_names() -> None:
    assert is_tensor_name("model.layers.0.self_attn.q_proj.weight") and is_tensor_name("a|b+c")
    assert not any(is_tensor_name(name) for name in ("", "a b", "a\n", "é", "a" * 1025, "\x7f"))
    assert is_label("") and is_label("Qwen3 0.6B – é")
    assert not any(is_label(text) for text in ("a\x1b[0m", "a\n", "a" * 201))
    assert is_sha256("0a" * 32) and not any(is_sha256(text) for text in ("", "0A" * 32, "0" * 63, "0" * 64 + "\n"))


BAD_PATHS = ["", "/etc/passwd", "../x", "a/../../x", "a/./b", "a//b", "a\\b", "C:x", "a\0b", "a\nb", "a" * 1025]


@pytest.mark.parametrize("name", BAD_PATHS)
def test_bad_relative_paths(tmp_path: Path, name: str) -> None:
    for check in (lambda: check_relative_path(name, "index.json"), lambda: resolve_inside(tmp_path, name, "index.json")):
        with pytest.raises(FerrumError, match=r"index\.json"):
            check()


def test_resolve_inside(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "file").write_text("x")
    (tmp_path / "secret").write_text("x")
    (root / "out").symlink_to("../secret")
    (root / "outdir").symlink_to("..")
    (root / "in").symlink_to("sub/file")
    (root / "loop").symlink_to("loop")
    os.mkfifo(root / "fifo")
    assert resolve_inside(root, "sub/file", "x").read_text() == "x"
    assert resolve_inside(root, "in", "x").read_text() == "x"
    for name in ("out", "outdir/secret", "fifo", "sub", "missing", "loop"):
        with pytest.raises(FerrumError, match="index"):
            resolve_inside(root, name, "index")
