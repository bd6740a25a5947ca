"""The comparison of generated kernels: nothing differs from itself, a planted change is found by name, a new name is none."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import pytest

from tests.kernel_diff import __main__ as command
from tests.kernel_diff.base import BASE, stored
from tests.kernel_diff.c_source import parse_c
from tests.kernel_diff.compare import Difference, compare
from tests.kernel_diff.machine_code import code_digests
from tests.kernel_diff.renderings import Rendering
from tests.kernel_diff.report import Change, lines, read_changes, surprises
from tests.kernel_diff.trees import ROOT, render_tree
from tests.kernel_diff.zoo import MODELS, ZOO, Entry, write_model

ENTRIES = [Entry("qwen3", target, "none") for target in ("cpu-avx2", "cuda-sm80", "metal-m1")]
TEMPLATES = ("cpu/{}.c.j2", "gpu/{}.j2")  # what CUDA and Metal share is one file


def edited_tree(folder: Path) -> Path:
    """This tree with other code in each ``gather_rows``, another local name in each ``rope_table``, and the norms renamed."""
    for name in ("ferrum", "graphs", "codegen", "templates"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    templates = folder / "templates"
    for place in TEMPLATES:
        edit(templates / place.format("gather_rows"), "rows[row] * {{ k }}", "rows[row] * {{ k }} + 1")
        edit(templates / place.format("rope_table"), "angle", "turn")
        (templates / place.format("rms_norm")).rename(templates / place.format("root_mean"))
    edit(folder / "codegen" / "kernels" / "rms_norm.py", '"rms_norm"', '"root_mean"')
    edit(folder / "templates" / "cpu" / "lib" / "math.h", "vf_sum", "sum_of_lanes")
    for path in (folder / "templates" / "cpu").glob("*.j2"):
        path.write_text(path.read_text().replace("vf_sum", "sum_of_lanes"))
    return folder


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text, path
    path.write_text(text.replace(old, new))


@pytest.fixture(scope="module")
def renderings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[Entry, Rendering]]:
    """By tree: ``this`` and ``edited``, from one trace."""
    work = tmp_path_factory.mktemp("kernel_diff")
    write_model(work / "models" / "qwen3", MODELS["qwen3"])
    found = {}
    for name, tree in (("this", ROOT), ("edited", edited_tree(work / "tree"))):
        render_tree(tree, work / "models", work / name, ENTRIES)
        found[name] = {entry: Rendering.read(work / name / entry.name) for entry in ENTRIES}
    return found


@pytest.fixture(scope="module")
def differences(renderings: dict[str, dict[Entry, Rendering]], tmp_path_factory: pytest.TempPathFactory) -> list[Difference]:
    pairs = [(entry, renderings["this"][entry], renderings["edited"][entry]) for entry in ENTRIES]
    assert not [new.error for _, _, new in pairs if new.error]
    return compare(pairs, partial(code_digests, cache_folder=tmp_path_factory.mktemp("cache")))


def test_a_tree_does_not_differ_from_itself(renderings: dict[str, dict[Entry, Rendering]]) -> None:
    def never(source: str, target: str, symbols: list[str]) -> dict[str, str]:
        raise AssertionError("equal texts need no machine code")

    this = renderings["this"]
    assert compare([(entry, this[entry], this[entry]) for entry in ENTRIES], never) == []


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e.target)
def test_a_planted_change_is_found_by_name(differences: list[Difference], entry: Entry) -> None:
    (found,) = (d for d in differences if d.entry == entry and d.kind == "code")
    assert found.kernel == "gather_rows"
    assert "rows[row] * 256" in found.base and found.new == found.base.replace("rows[row] * 256", "rows[row] * 256 + 1")


def test_a_local_name_is_a_difference_of_the_source_only(differences: list[Difference]) -> None:
    found = {(d.entry.target, d.kernel) for d in differences if d.kind == "source"}
    assert found == {(entry.target, "rope_table") for entry in ENTRIES}


def test_new_names_of_kernels_and_files_are_no_difference(differences: list[Difference]) -> None:
    assert not [d for d in differences if d.kind not in ("code", "source")]
    assert not [d for d in differences if "norm" in d.kernel or "root_mean" in d.kernel]


def test_what_is_named_does_not_fail(differences: list[Difference]) -> None:
    changes = [Change("*gather_rows", "c*", "the row behind is wanted")]
    assert {d.entry.target for d in surprises(differences, changes)} == {"metal-m1"}
    text = "\n".join(lines(differences, changes, len(ENTRIES)))
    assert text.count("named: the row behind is wanted") == 2
    assert text.endswith("3 renderings: 1 differences, 2 more named in docs/kernel-changes.md, 3 in the source only")


def test_a_launch_that_differs_is_named(renderings: dict[str, dict[Entry, Rendering]]) -> None:
    for entry in ENTRIES:
        base = renderings["this"][entry]
        launches = base.table["launches"]
        changed = [launches[1], launches[0], *launches[2:]]
        table = base.table | {"launches": changed}
        new = Rendering(base.source, {"table": table})
        kinds = {d.kind for d in compare([(entry, base, new)], lambda source, target, symbols: dict.fromkeys(symbols, source))}
        assert "plan" in kinds


def test_a_helper_belongs_to_those_who_use_it() -> None:
    source = "#define TWICE(x) (2 * (x))\nstatic int %s(int x) { return TWICE(x); }\nvoid a(void) { %s(1); }\nvoid b(void) {}\n"
    base, renamed = parse_c(source % ("f", "f")), parse_c(source % ("other", "other"))
    changed = parse_c((source % ("f", "f")).replace("2 *", "3 *"))
    assert base.closure(["a"]).digest == renamed.closure(["a"]).digest != changed.closure(["a"]).digest
    assert base.closure(["b"]).digest == changed.closure(["b"]).digest


MOVED = {"conv", "cumsum", "gather", "matmul", "order", "scatter", "take"}
GENERIC = {"map", "recur", "reduce", "rope", "run_norm", "softmax", *MOVED}
WHOLE = {"attend", "pool"}  # of models that embed
EXPERTS = {"grouped_linear", "grouped_linear_bucket", "grouped_linear_rows"}
OF_GPUS = {"grouped_linear_plain", "store_kv"}  # experts, and keys and values that were made elsewhere: traced models have them


def test_every_template_is_in_the_zoo() -> None:
    """A kernel that the zoo never renders could change unseen.

    ``quantize`` of GPUs is for a value that a product and something else read, which no model of today has. Sampling on CPUs
    counts as part of the step. Generic kernels have as many forms as models have, and no family has experts; drawn graphs of
    their ops try them.
    """
    seen: dict[str, set[str]] = {"cpu": set(), "cuda": set(), "metal": set()}
    for name, summary in stored().items():
        seen[name.split("-")[0]] |= {kernel for kernel, _ in summary.kernels}
    templates = ROOT / "templates"
    for device in ("cpu", "cuda", "metal"):
        places = (device,) if device == "cpu" else (device, "gpu")
        stems = {path.name.split(".")[0] for place in places for path in (templates / place).glob("*.j2")}
        unseen = {"step", "sample", *EXPERTS} if device == "cpu" else {"step", "quantize", "cuda", "metal", *OF_GPUS}
        unseen |= GENERIC | WHOLE
        for stem in stems - unseen:
            assert stem in seen[device], (device, stem)


def test_the_stored_rendering_is_of_this_zoo() -> None:
    assert set(stored()) == {entry.name for entry in ZOO}
    assert BASE.stat().st_size < 300_000


@pytest.mark.slow
def test_the_whole_zoo_is_as_stored(capsys: pytest.CaptureFixture[str]) -> None:
    """Differences that are not named in docs/kernel-changes.md."""
    assert command.main([]) == 0, capsys.readouterr().out


def test_former_rows_count_beside_a_revision_only(tmp_path: Path) -> None:
    page = tmp_path / "changes.md"
    rows = "| kernels | targets | reason |\n|---|---|---|\n| `a*` | `*` | now |\n"
    page.write_text(f"{rows}\n## What was meant before\n\n| `b` | `cpu-*` | then |\n")
    assert read_changes(page) == [Change("a*", "*", "now")]
    assert read_changes(page, earlier=True) == [Change("a*", "*", "now"), Change("b", "cpu-*", "then")]
