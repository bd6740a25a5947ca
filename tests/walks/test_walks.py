"""The pages that say how to add something: each is done, as it is written, on a copy of the tree."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.walks.walk import ROOT, Block, blocks, changed, walk

DOCS = ROOT / "docs"
TIMEOUT = 600  # of one script; alone a walk takes about a minute


def test_a_change_must_fit_once() -> None:
    text = "a\nb\nc\nb\n"
    assert changed(text, " a\n+x\n b\n") == "a\nx\nb\nc\nb\n"
    assert changed(text, "-a\n+x\n") == "x\nb\nc\nb\n"
    for diff in (" b\n+x\n", " d\n+x\n", "-a\n-c\n"):
        with pytest.raises(AssertionError, match="not there once"):
            changed(text, diff)


def test_blocks_are_found() -> None:
    page = "x\n```python a/b.py\n1\n```\n```sh\nls\n```\n```\nplain\n```\n"
    assert blocks(page)[:2] == [Block("python", "a/b.py", "1\n"), Block("sh", "", "ls\n")]


def done(name: str, folder: Path) -> tuple[set[str], list[str]]:
    """Walk a page: the files that it made or changed outside of docs and tests, and what its commands printed."""
    steps = list(walk(DOCS / name, folder, TIMEOUT))
    files = {said for block, said in steps if block.path and not block.path.startswith(("docs/", "tests/"))}
    return files, [said for block, said in steps if block.language == "sh"]


@pytest.mark.slow
def test_adding_an_op(tmp_path: Path) -> None:
    """One stem on three kinds of machine: four places."""
    files, printed = done("adding-an-op.md", tmp_path)
    stem = {"codegen/kernels/relu_squared.py", "templates/cpu/relu_squared.c.j2", "templates/gpu/relu_squared.j2"}
    assert files == {"graphs/ops.py", "codegen/select.py", *stem}
    assert printed[-1].count("relu_squared_") == 3


@pytest.mark.slow
def test_adding_a_kernel(tmp_path: Path) -> None:
    """A second kernel of an op: a class, a template, a row."""
    files, printed = done("adding-a-kernel.md", tmp_path)
    assert files == {"codegen/kernels/rms_norm_warp.py", "templates/gpu/rms_norm_warp.j2", "codegen/select.py"}
    assert printed[-1].count("rms_norm_warp_") >= 2


@pytest.mark.slow
def test_adding_a_model(tmp_path: Path) -> None:
    """A family with fused projections: one record in one place."""
    files, printed = done("adding-a-model.md", tmp_path)
    assert files == {"ferrum/families.py"}
    assert "1 passed" in printed[0] and "cat(" not in printed[1] and "model.layers.1.self_attn.qkv_proj.weight" in printed[1]
