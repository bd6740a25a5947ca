""".pt2 files: nothing in them runs, whatever is wrong with one is said in a line."""

from __future__ import annotations

import io
import json
import os
import random
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ferrum.errors import FerrumError
from ferrum.graphs.findings import UnsupportedOps
from ferrum.graphs.frontend.exported import allowed, import_exported, parts
from ferrum.graphs.pt2.archive import Archive
from ferrum.graphs.weights import open_checkpoint

MUTANTS = int(os.environ.get("MUTANTS", "5000"))


class Small(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rows = torch.nn.Embedding(7, 4)
        self.head = torch.nn.Linear(4, 7, bias=False)
        self.head.weight = self.rows.weight
        self.register_buffer("shift", torch.arange(4.0))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.rows(tokens) + self.shift)


@pytest.fixture(scope="module")
def members() -> dict[str, bytes]:
    """The members of a whole file, by name."""
    dims = {0: torch.export.Dim("batch"), 1: torch.export.Dim("seq")}
    program = torch.export.export(Small().eval(), (torch.zeros((2, 8), dtype=torch.int64),), dynamic_shapes=(dims,))
    data = io.BytesIO()
    torch.export.save(program, data)
    with zipfile.ZipFile(data) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def put(folder: Path, members: dict[str, bytes], compressed: bool = False) -> Path:
    path = folder / "model.pt2"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def named(members: dict[str, bytes], suffix: str) -> str:
    return next(name for name in members if name.endswith(suffix))


def changed(members: dict[str, bytes], suffix: str, change: Callable[[Any], None]) -> dict[str, bytes]:
    name = named(members, suffix)
    value = json.loads(members[name])
    change(value)
    return {**members, name: json.dumps(value).encode()}


def test_a_program_is_read_with_its_tensors(members: dict[str, bytes], tmp_path: Path) -> None:
    path = put(tmp_path, members)
    graph = import_exported(path)
    assert {param.name for param in graph.params} == {"rows.weight", "shift"}  # of tied ones the first
    with open_checkpoint(path) as checkpoint:
        assert set(checkpoint.names()) == {"rows.weight", "head.weight", "shift"}
        assert checkpoint.read("rows.weight").shape == (7, 4) and not checkpoint.read("rows.weight").flags.owndata


def test_pickles_in_it_are_not_opened(members: dict[str, bytes], tmp_path: Path) -> None:
    """The sample inputs are pickled; what else is makes the file one that is not read."""
    bomb = b"cos\nsystem\n(S'touch %s'\ntR." % str(tmp_path / "ran").encode()
    graph = import_exported(put(tmp_path, {**members, named(members, "sample_inputs/model.pt"): bomb}))
    assert graph.nodes and not (tmp_path / "ran").exists()

    def pickled(value: Any) -> None:
        next(iter(value["config"].values()))["use_pickle"] = True

    with pytest.raises(FerrumError, match="is pickled: loading it can run any code") as caught:
        import_exported(put(tmp_path, changed(members, "weights_config.json", pickled)))
    assert caught.value.code == "checkpoint-pickle"


def sizes(text: str) -> Callable[[Any], None]:
    def change(value: Any) -> None:
        for tensor in value["graph_module"]["graph"]["tensor_values"].values():
            for size in tensor["sizes"]:
                if "as_expr" in size:
                    size["as_expr"]["expr_str"] = text

    return change


HARMFUL = [
    "__import__('os').system('touch ran')", "(lambda: 1)()", "s0.__class__", "[1][0]", "9**9**9", "9**9", "exec('1')", "S('1')",
    "Symbol('x')", "Symbol('s1', x=f())", "Pow(Integer(9), Integer(4))", "Integer('1')", "'a'*9", "s0 if s1 else 2", "s0**(9)",
    "s0 << 400", "f'{s0}'", "(" * 400 + "1" + ")" * 400, "1" * 900,
]  # fmt: skip


@pytest.mark.parametrize("text", HARMFUL)
def test_sizes_are_arithmetic_and_nothing_else(text: str, members: dict[str, bytes], tmp_path: Path) -> None:
    with pytest.raises(FerrumError) as caught:
        import_exported(put(tmp_path, changed(members, "models/model.json", sizes(text))))
    assert caught.value.code == "checkpoint-corrupt" and "size" in str(caught.value)


SYMBOLS = "Add(Mul(Integer(2), Pow(Symbol('s72', positive=True, integer=True), Integer(2))), Integer(-1))"
MODELS = ["s0", "2*s0 + s17", "s0*s1", "((s0 - 1)//4)", "FloorDiv(s0, 4)", "Max(1, s0)", "s0**2", "Eq(s0, 1)", SYMBOLS]


@pytest.mark.parametrize("text", MODELS)
def test_sizes_that_models_have(text: str) -> None:
    import ast

    assert all(allowed(part, parent) for part, parent in parts(ast.parse(text, mode="eval")))


@pytest.mark.parametrize(
    "target", ["os.system", "torch.ops.my.op.default", "torch.hub.load", "torch.ops.aten", "_operator.methodcaller", "#my.thing"]
)
def test_only_ops_of_torch_are_looked_up(target: str, members: dict[str, bytes], tmp_path: Path) -> None:
    def change(value: Any) -> None:
        value["graph_module"]["graph"]["nodes"][0]["target"] = target

    with pytest.raises(UnsupportedOps, match="nearest: ops of torch.ops.aten"):
        import_exported(put(tmp_path, changed(members, "models/model.json", change)))


def test_trees_of_a_file_are_not_read(members: dict[str, bytes], tmp_path: Path) -> None:
    """A tree may name a module that is imported; ours are put in its place."""

    def change(value: Any) -> None:
        tree = {"type": "builtins.tuple", "context": json.dumps({"__enum__": True, "fqn": "this:s"}), "children_spec": []}
        for call in value["graph_module"]["module_call_graph"]:
            call["signature"] = {"inputs": [], "outputs": [], "in_spec": json.dumps([1, tree]), "out_spec": json.dumps([1, tree])}

    assert import_exported(put(tmp_path, changed(members, "models/model.json", change))).nodes


@pytest.mark.parametrize("key", ["as_graph", "as_custom_obj", "as_operator"])
def test_programs_in_programs_are_findings(key: str, members: dict[str, bytes], tmp_path: Path) -> None:
    def change(value: Any) -> None:
        value["graph_module"]["graph"]["nodes"][0]["inputs"][0]["arg"] = {key: {"name": "x"}}

    with pytest.raises(UnsupportedOps, match="nearest: tensors and numbers"):
        import_exported(put(tmp_path, changed(members, "models/model.json", change)))


def meta(key: str, given: Any) -> Callable[[Any], None]:
    def change(value: Any) -> None:
        next(iter(value["config"].values()))["tensor_meta"][key] = given

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (meta("sizes", [{"as_int": 1 << 40}, {"as_int": 4}]), "needs .* bytes from 0 on of 112"),
        (meta("sizes", [{"as_int": -1}, {"as_int": 4}]), "has sizes that are not known"),
        (meta("strides", [{"as_int": 1}, {"as_int": 7}]), "does not lie row by row"),
        (meta("storage_offset", {"as_int": 1}), "needs 112 bytes from 4 on of 112"),
        (meta("dtype", 99), "of type 99 in"),
        (meta("dtype", None), "of type None in"),
    ],
)
def test_tensors_lie_in_their_members(
    change: Callable[[Any], None], words: str, members: dict[str, bytes], tmp_path: Path
) -> None:
    with pytest.raises(FerrumError, match=words) as caught:
        open_checkpoint(put(tmp_path, changed(members, "weights_config.json", change)))
    assert caught.value.code == "checkpoint-corrupt" and "model.pt2" in str(caught.value)


def test_what_is_no_archive_of_a_program(members: dict[str, bytes], tmp_path: Path) -> None:
    cases = [
        (members, True, "checkpoint-corrupt", "is compressed or encrypted"),
        ({"a/x": b"1"}, False, "format-unsupported", "no exported program is in it"),
        ({"serialized_exported_program.json": b"{}"}, False, "format-unsupported", "an old version of torch"),
    ]
    for given, compressed, code, words in cases:
        with pytest.raises(FerrumError, match=words) as caught:
            import_exported(put(tmp_path, given, compressed))
        assert caught.value.code == code
    for raw, words in ((b"x" * 100, "is no archive"), (b"PK", "has 2 bytes")):
        (tmp_path / "model.pt2").write_bytes(raw)
        with pytest.raises(FerrumError, match=words):
            Archive(tmp_path / "model.pt2")


def mutant(members: dict[str, bytes], seed: int) -> dict[str, bytes]:
    """Members cut, swapped and with changed bytes."""
    chance, made = random.Random(seed), dict(members)
    for _ in range(chance.randint(1, 3)):
        name = chance.choice([name for name in made if name.endswith(".json")])
        data = bytearray(made[name])
        at = chance.randrange(max(1, len(data)))
        match chance.randrange(5):
            case 0:
                data[at : at + 1] = bytes([chance.randrange(32, 127)])
            case 1:
                del data[at : at + chance.randint(1, 30)]
            case 2:
                number = chance.choice([b"-1", b"99999999999999999999", b"null", b"true", b"[]", b"{}", b'"x"'])
                data[at : at + 1] = number
            case 3:
                data[at:at] = data[at : at + chance.randint(1, 40)]
            case _:
                made.pop(name)
                if not any(other.endswith(".json") for other in made):
                    return made
                continue
        made[name] = bytes(data)
    return made


def tried(members: dict[str, bytes], seeds: range, folder: Path) -> list[str]:
    wrong = []
    for seed in seeds:
        path, started = put(folder, mutant(members, seed)), time.monotonic()
        try:
            import_exported(path)
            with open_checkpoint(path) as checkpoint:
                checkpoint.digest()
        except FerrumError as error:
            if "\n" in str(error) or len(str(error)) > 2000:
                wrong.append(f"{seed}: {error}")
        except Exception as error:
            wrong.append(f"{seed}: {type(error).__name__}: {error}")
        if time.monotonic() - started > 2:
            wrong.append(f"{seed}: {time.monotonic() - started:.1f} s")
    return wrong


def test_mutants_are_read_or_refused(members: dict[str, bytes], tmp_path: Path) -> None:
    assert tried(members, range(60), tmp_path) == []


@pytest.mark.slow
def test_many_mutants_are_read_or_refused(members: dict[str, bytes], tmp_path: Path) -> None:
    assert tried(members, range(1000, 1000 + MUTANTS // 5), tmp_path) == []


def test_bits_of_the_archive_itself(members: dict[str, bytes], tmp_path: Path) -> None:
    raw = put(tmp_path, members).read_bytes()
    for seed in range(100):
        chance, data = random.Random(seed), bytearray(raw)
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        (tmp_path / "model.pt2").write_bytes(data[: chance.randrange(len(data)) if seed % 3 == 0 else len(data)])
        try:
            with open_checkpoint(tmp_path / "model.pt2") as checkpoint:
                checkpoint.digest()
        except FerrumError as error:
            assert "\n" not in str(error)


def test_a_graph_nested_too_deep_is_refused(members: dict[str, bytes], tmp_path: Path) -> None:
    name = named(members, "models/model.json")
    deep = b'{"graph_module":' * 900 + b"1" + b"}" * 900
    with pytest.raises(FerrumError):
        import_exported(put(tmp_path, {**members, name: deep}))
