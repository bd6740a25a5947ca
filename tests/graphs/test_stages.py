"""Golden texts: what each stage makes of a small model, and what single passes make of single ideas."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ferrum.errors import FerrumError
from ferrum.graphs.frontend.torch_export import import_module
from ferrum.graphs.pipeline import PIPELINE, STAGE_NAMES, load_graph, run_pipeline
from ferrum.graphs.text import parse_graph, print_graph
from ferrum.graphs.verify import verify
from tests.graphs.conftest import GOLDENS, Golden
from tests.graphs.scratch import build

STAGES = GOLDENS / "stages"
CASES = sorted(path.relative_to(GOLDENS).with_suffix("").as_posix() for path in (GOLDENS / "cases").glob("*/*.before"))


def stage_file(number: int) -> str:
    return f"stages/{number:02d}-{STAGE_NAMES[number - 1]}.txt"


def test_import(golden: Golden) -> None:
    graph = import_module(build(), name="scratch")
    golden(stage_file(1), print_graph(verify(graph), origins=False))
    assert all(node.origin.split()[-1].startswith("scratch.py:") for node in graph.nodes)


@pytest.mark.parametrize("number", range(2, len(PIPELINE) + 1))
def test_stage(number: int, golden: Golden) -> None:
    before = load_graph(GOLDENS / stage_file(number - 1))
    golden(stage_file(number), print_graph(verify(PIPELINE[number - 1].run(before))))


@pytest.mark.parametrize("case", CASES)
def test_case(case: str, golden: Golden) -> None:
    """``cases/<pass>/<idea>.before`` through the pass gives ``.after``."""
    stage = PIPELINE[STAGE_NAMES.index(Path(case).parent.name)]
    before = verify(parse_graph((GOLDENS / f"{case}.before").read_text(encoding="utf-8")))
    golden(f"{case}.after", print_graph(verify(stage.run(before), stage.name)))


def test_every_pass_has_a_case() -> None:
    assert {Path(case).parent.name for case in CASES} == set(STAGE_NAMES[1:])


@pytest.mark.parametrize("number", range(2, len(PIPELINE) + 1))
def test_a_stage_says_which_ops_it_makes(number: int) -> None:
    """The words of ``ferrum explain STAGE`` beside its goldens: each op that is there after it and was not before."""
    stage = PIPELINE[number - 1]
    folder = GOLDENS / "cases" / stage.name
    pairs = [(GOLDENS / stage_file(number - 1), GOLDENS / stage_file(number))]
    pairs += [(path, path.with_suffix(".after")) for path in folder.glob("*.before")]
    made = {op for before, after in pairs for op in ops_of(after) - ops_of(before)}
    assert [op for op in sorted(made) if not re.search(rf"\b{op}\b", stage.doc)] == []
    assert made or stage.name == "fuse_residual"  # which makes a linear do more


def ops_of(path: Path) -> set[str]:
    return {node.op for node in parse_graph(path.read_text(encoding="utf-8")).nodes}


# a paged graph cannot be paged again
AGAIN = [number for number, name in enumerate(STAGE_NAMES, 1) if name != "page_attention"]


@pytest.mark.parametrize("number", AGAIN)
def test_a_pass_run_again_changes_nothing(number: int) -> None:
    graph = load_graph(GOLDENS / stage_file(number))
    assert print_graph(PIPELINE[number - 1].run(graph)) == print_graph(graph)


def test_stop_after_and_start_from_meet(tmp_path: Path) -> None:
    first = load_graph(GOLDENS / stage_file(1))
    whole = print_graph(run_pipeline(first, dump=tmp_path))
    dumps = sorted(path.name for path in tmp_path.iterdir())
    assert dumps == [f"{i:02d}-{name}.txt" for i, name in enumerate(STAGE_NAMES, 1)]
    for i, (name, following) in enumerate(zip(STAGE_NAMES, STAGE_NAMES[1:], strict=False), 1):
        stopped = run_pipeline(first, stop_after=name)
        assert print_graph(stopped) == (tmp_path / f"{i:02d}-{name}.txt").read_text(encoding="utf-8")
        assert print_graph(run_pipeline(parse_graph(print_graph(stopped)), start_from=following)) == whole


def test_stage_names_are_checked() -> None:
    graph = load_graph(GOLDENS / stage_file(1))
    with pytest.raises(FerrumError, match="one of import, canonicalize"):
        run_pipeline(graph, stop_after="nonsense")
    with pytest.raises(FerrumError, match="comes after"):
        run_pipeline(graph, start_from="fuse_mlp", stop_after="fuse_norm")


def test_an_unreadable_dump_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    for name in ("none.txt", "bytes.txt"):
        with pytest.raises(FerrumError) as caught:
            load_graph(tmp_path / name)
        assert caught.value.code == "graph-unreadable"


def test_layers_cost_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work grows with the number of layers, not with its square: pattern attempts are counted, not seconds."""
    from ferrum.graphs import rewrite

    counts = []
    original = rewrite.matches
    for layers in (4, 16):
        graph = stacked(layers)
        count = [0]

        def counted(*args: object, count: list[int] = count) -> object:
            count[0] += 1
            return original(*args)  # type: ignore[arg-type]

        monkeypatch.setattr(rewrite, "matches", counted)
        run_pipeline(graph)
        monkeypatch.setattr(rewrite, "matches", original)
        counts.append(count[0])
    assert counts[1] < 4.5 * counts[0]


def stacked(layers: int) -> object:
    """The golden model with its one layer repeated: the residual stream runs through all of them."""
    from dataclasses import replace

    graph = load_graph(GOLDENS / stage_file(1))
    at = [n.output.name for n in graph.nodes].index("pow")
    last = max(i for i, n in enumerate(graph.nodes) if n.output.name == "add.7")
    body, nodes, stream = graph.nodes[at : last + 1], list(graph.nodes[: last + 1]), "add.7"
    for layer in range(1, layers):
        names = {n.output.name: f"{n.output.name}@{layer}" for n in body} | {"embedding": stream}
        nodes += [
            replace(n, inputs=tuple(names.get(i, i) for i in n.inputs), outputs=(replace(n.output, name=names[n.output.name]),))
            for n in body
        ]
        stream = f"add.7@{layer}"
    rest = [replace(n, inputs=tuple(stream if i == "add.7" else i for i in n.inputs)) for n in graph.nodes[last + 1 :]]
    return graph.with_nodes([*nodes, *rest])
