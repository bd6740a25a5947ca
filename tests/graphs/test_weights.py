"""Checkpoints: what is read equals what was written, and hostile files are refused with the file and the field."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from ferrum.errors import FerrumError
from ferrum.graphs.expressions.expression import Tensor, cat
from ferrum.graphs.expressions.sources import Constant
from ferrum.graphs.interpret import SourceWeights
from ferrum.graphs.ir import Graph, Param, Value
from ferrum.graphs.pipeline import load_graph
from ferrum.graphs.weights import WeightsMismatch, match, open_checkpoint
from tests.graphs.conftest import GOLDENS

MUTANTS = int(os.environ.get("MUTANTS", "400"))
RNG = np.random.default_rng(5)
ARRAYS: dict[str, np.ndarray[Any, Any]] = {
    "a.weight": RNG.standard_normal((6, 4)).astype(np.float32),
    "b.weight": RNG.standard_normal((3, 4)).astype(np.float16),
    "c": RNG.integers(-5, 5, (2, 2, 2)),
    "d": RNG.standard_normal(7).astype(ml_dtypes.bfloat16),
    "empty": np.zeros((0, 3), np.float32),
    "scalar": np.asarray(2.5, np.float64),
}


def write(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(shape: list[Any], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


TWICE = b'{"a": %s, "a": %s}' % ((json.dumps(entry([1], 0, 4)).encode(),) * 2)


def sharded(folder: Path, arrays: dict[str, np.ndarray[Any, Any]]) -> Path:
    names = sorted(arrays)
    table = {}
    for i, part in enumerate((names[::2], names[1::2]), 1):
        shard = f"model-{i:05d}-of-00002.safetensors"
        save_file({name: arrays[name] for name in part}, folder / shard)
        table |= dict.fromkeys(part, shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": table}))
    return folder


def test_what_was_written_is_read(tmp_path: Path) -> None:
    save_file(ARRAYS, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.names() == tuple(sorted(ARRAYS))
        assert checkpoint.info("d") == ("bf16", (7,))
        assert checkpoint.info("c") == ("i64", (2, 2, 2))
        assert checkpoint.info("scalar") == ("f64", ())
        for name, array in ARRAYS.items():
            data = checkpoint.read(name)
            assert data.shape == array.shape
            assert data.tobytes() == array.tobytes()
            assert not data.flags.writeable and not data.flags.owndata
        del data
        assert checkpoint.nbytes() == sum(a.nbytes for a in ARRAYS.values())
        with pytest.raises(FerrumError, match="no tensor nothing"):
            checkpoint.read("nothing")


def test_shards_and_one_file_have_the_same_digest(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir(), two.mkdir()
    save_file(ARRAYS, one / "model.safetensors")
    sharded(two, ARRAYS)
    digests = {open_checkpoint(folder).digest() for folder in (one, two)}
    assert len(digests) == 1
    changed = ARRAYS | {"a.weight": ARRAYS["a.weight"] + np.float32(1)}
    save_file(changed, one / "model.safetensors")
    assert open_checkpoint(one).digest() not in digests


def test_a_file_of_another_name_is_found_when_it_is_the_only_one(tmp_path: Path) -> None:
    save_file(ARRAYS, tmp_path / "weights.safetensors")
    assert len(open_checkpoint(tmp_path).names()) == len(ARRAYS)
    save_file(ARRAYS, tmp_path / "more.safetensors")
    with pytest.raises(FerrumError, match="2 safetensors files without"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth"])
def test_pickled_weights_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04N.")
    with pytest.raises(FerrumError, match="is pickled") as caught:
        open_checkpoint(tmp_path)
    assert caught.value.code == "checkpoint-pickle"


def test_no_folder_and_no_weights(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(FerrumError) as caught:
            open_checkpoint(folder)
        assert caught.value.code == "checkpoint-missing"


@pytest.mark.parametrize(
    ("header", "data", "words"),
    [
        (b"[1]", b"", "is not a table of tensors"),
        (b"{", b"", "is not a table of tensors"),
        (b"\xff\xfe", b"", "is not a table of tensors"),
        (b"[" * 100_000, b"", "is not a table of tensors"),
        (b'{"__metadata__": {"a": ' + b"[" * 100_000 + b"}}", b"", "is not a table of tensors"),
        (TWICE, b"0123", "says dtype 2 times of 1 tensors"),
        (TWICE.replace(b'"F32"', b'"I32"', 1), b"0123", "says dtype 2 times of 1 tensors"),
        (b'{"a": {"dtype": "F32", "shape": [1], "shape": [1], "data_offsets": [0, 4]}}', b"0123", "says shape 2 times"),
        ({"a": 5}, b"", "is not a table of tensors"),
        ({"a": {"dtype": "F32", "shape": [1]}}, b"", "says data_offsets 0 times of 1 tensors"),
        ({"a": entry([1], 0, 4, "F31")}, b"0123", "dtype 'F31' is unknown"),
        ({"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}, b"0123", "dtype"),
        ({"a": entry([1], 0, 8)}, b"01234567", "do not hold 4 bytes"),
        ({"a": entry([-1], 0, 4)}, b"0123", "shape is not a list"),
        ({"a": entry([True], 0, 4)}, b"0123", "Expected `int`, got `bool`"),
        ({"a": entry([1.0], 0, 4)}, b"0123", "Expected `int`, got `float`"),
        ({"a": entry([1] * 9, 0, 4)}, b"0123", "shape is not a list"),
        ({"a": entry([2**61, 2**61], 0, 4)}, b"0123", "needs more than the 4 bytes"),
        ({"a": entry([2**200], 0, 4)}, b"0123", "shape is not a list"),
        ({"a": entry([1], -4, 0)}, b"0123", "are not two positions"),
        ({"a": entry([1], 4, 0)}, b"0123", "do not hold"),
        ({"a": entry([1], 4, 8)}, b"0123", "do not hold"),
        ({"a": entry([1], 0, 4), "b": entry([1], 0, 4)}, b"0123", "overlaps"),
        ({"a": entry([1], 4, 8)}, b"01234567", "leaves a gap"),
        ({"a": entry([1], 0, 4)}, b"01234567", "its tensors end at"),
        ({"a\n": entry([1], 0, 4)}, b"0123", "visible ASCII"),
        ({"": entry([1], 0, 4)}, b"0123", "visible ASCII"),
    ],
)
def test_hostile_headers(tmp_path: Path, header: Any, data: bytes, words: str) -> None:
    write(tmp_path / "model.safetensors", header, data)
    with pytest.raises(FerrumError, match=words) as caught:
        open_checkpoint(tmp_path)
    assert caught.value.code == "checkpoint-corrupt"
    assert "model.safetensors" in str(caught.value) and "\n" not in str(caught.value)


def test_metadata_may_be_any_text(tmp_path: Path) -> None:
    texts = {"format": "pt", "dtype": "bfloat16", "shape": "[1]", "data_offsets": "none", "a": '{"dtype": ",{", "shape": 1}'}
    save_file({"w": np.ones(3, np.float32)}, tmp_path / "model.safetensors", metadata=texts)
    assert open_checkpoint(tmp_path).names() == ("w",)


def entries(count: int, digits: int) -> bytes:
    return b"{" + b",".join(b'"%0*x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % (digits, i) for i in range(count)) + b"}"


BOMBS: dict[str, Callable[[], bytes]] = {
    "lists": lambda: b'{"a":[' + b"[]," * 9_000_000 + b"[]]}",
    "tables": lambda: b'{"a":[' + b"{}," * 9_000_000 + b"{}]}",
    "metadata": lambda: b'{"__metadata__":{' + b'"k":[],' * 4_000_000 + b'"k":[]}}',
    "names": lambda: b"{" + b'"k":0,' * 4_500_000 + b'"k":0}',
    "numbers": lambda: b'{"a":{"dtype":"U8","shape":[' + b"999," * 6_900_000 + b"9]}}",
    "tensors": lambda: entries(500_000, 5),
    "as many as may be": lambda: entries((1 << 16) - 1, 300),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", BOMBS)
def test_large_headers_take_little(kind: str, tmp_path: Path) -> None:
    """Twice the file and 64 MB of memory, a second of work: measured in a process of its own, beside what it needs without."""
    path = write(tmp_path / "model.safetensors", BOMBS[kind]())
    small = write(tmp_path / "small.safetensors", b"{}")
    code = (
        "import sys, time, resource\nfrom pathlib import Path\nfrom ferrum.errors import FerrumError\n"
        "from ferrum.graphs.weights.safetensors import SafetensorsFile\nstarted = time.process_time()\n"
        "try:\n    SafetensorsFile(Path(sys.argv[1]))\n"
        "except FerrumError as error:\n    assert error.code == 'checkpoint-corrupt'\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10, time.process_time() - started)"
    )
    commands = ([sys.executable, "-c", code, str(file)] for file in (small, path))
    said = [subprocess.run(command, capture_output=True, check=True, text=True).stdout for command in commands]
    (base, _), (peak, seconds) = (map(float, line.split()) for line in said)
    assert peak - base <= 2 * (path.stat().st_size >> 20) + 64
    assert seconds <= 2  # one on a machine that does nothing else


@pytest.mark.parametrize("length", [2**63, 10**9, 40])
def test_a_header_longer_than_the_file(tmp_path: Path, length: int) -> None:
    write(tmp_path / "model.safetensors", b"{}", b"", length)
    with pytest.raises(FerrumError, match="header length"):
        open_checkpoint(tmp_path)


def test_short_files(tmp_path: Path) -> None:
    for data in (b"", b"1234567"):
        (tmp_path / "model.safetensors").write_bytes(data)
        with pytest.raises(FerrumError, match="a header length needs 8"):
            open_checkpoint(tmp_path)


@settings(max_examples=MUTANTS, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_mutants_are_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    """Flipped, cut and spliced files: an error of ours, or a checkpoint that can be read to its end."""
    path = tmp_path / "model.safetensors"
    save_file({name: ARRAYS[name] for name in ("a.weight", "c", "d")}, path)
    raw = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(raw[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        kind = data.draw(st.sampled_from(["flip", "cut", "insert", "length"]))
        at = data.draw(st.integers(0, min(header + 8, len(raw) - 1)))
        if kind == "flip":
            raw[at] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "cut":
            del raw[at : at + data.draw(st.integers(1, 40))]
        elif kind == "insert":
            raw[at:at] = data.draw(st.sampled_from([b"0", b"9" * 30, b'"', b"{", b"]", b"\x00", b"-1,", b"1e9"]))
        else:
            raw[:8] = data.draw(st.integers(0, 2**64 - 1)).to_bytes(8, "little")
        if len(raw) < 9:
            break
    path.write_bytes(bytes(raw))
    try:
        checkpoint = open_checkpoint(tmp_path)
    except FerrumError as error:
        assert error.code == "checkpoint-corrupt" and "model.safetensors" in str(error)
        return
    assert len(checkpoint.digest()) == 64


def index(folder: Path, table: Any) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))


@pytest.mark.parametrize(
    "shard",
    ["../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "..", "model.bin", "a\\b.safetensors", "a\x00.safetensors"],
)
def test_an_index_cannot_lead_elsewhere(tmp_path: Path, shard: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(ARRAYS, tmp_path / "x.safetensors")
    index(folder, {"a.weight": shard})
    with pytest.raises(FerrumError) as caught:
        open_checkpoint(folder)
    assert caught.value.code == "bad-path"


def test_bad_indices(tmp_path: Path) -> None:
    for table in ([], {"a": 1}, None):
        index(tmp_path, table)
        with pytest.raises(FerrumError) as caught:
            open_checkpoint(tmp_path)
        assert caught.value.code == "checkpoint-corrupt"
    index(tmp_path, {"a.weight": "m-1.safetensors", "b": "m-2.safetensors"})
    with pytest.raises(FerrumError, match=r"2 of 2 files are missing: m-1") as caught:
        open_checkpoint(tmp_path)
    assert caught.value.code == "checkpoint-missing"
    save_file(ARRAYS, tmp_path / "m-1.safetensors")
    save_file(ARRAYS, tmp_path / "m-2.safetensors")
    with pytest.raises(FerrumError, match="1 tensors are not in their files, first b"):
        open_checkpoint(tmp_path)


def test_links_may_lead_to_the_hub_cache_only(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "rev"
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True), blobs.mkdir()
    save_file(ARRAYS, blobs / "abc")
    (snapshot / "model.safetensors").symlink_to("../../blobs/abc")
    assert len(open_checkpoint(snapshot).names()) == len(ARRAYS)
    folder = tmp_path / "plain"
    folder.mkdir()
    (folder / "model.safetensors").symlink_to(blobs / "abc")
    with pytest.raises(FerrumError, match="through a link") as caught:
        open_checkpoint(folder)
    assert caught.value.code == "bad-path"


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(FerrumError, match="not a regular file"):
        open_checkpoint(tmp_path)


# matching


def model_arrays(graph: Graph) -> dict[str, np.ndarray[Any, Any]]:
    random = np.random.default_rng(1)
    shapes = {p.name: p.shape for p in graph.params if p.weight}
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}  # type: ignore[arg-type]


@pytest.fixture
def imported() -> Graph:
    return load_graph(GOLDENS / "stages" / "01-import.txt")


@pytest.fixture
def finished() -> Graph:
    return load_graph(GOLDENS / "stages" / "12-fuse_paged.txt")


def test_a_checkpoint_that_fits(tmp_path: Path, imported: Graph, finished: Graph) -> None:
    save_file(model_arrays(imported) | {"rotary_emb.inv_freq": np.ones(3, np.float32)}, tmp_path / "model.safetensors")
    for graph in (imported, finished):
        match(graph, open_checkpoint(tmp_path))


@pytest.mark.parametrize("stage", ["imported", "finished"])
def test_all_mismatches_are_listed(tmp_path: Path, stage: str, request: pytest.FixtureRequest, imported: Graph) -> None:
    arrays = model_arrays(imported)
    del arrays["norm.weight"]
    q, k = "layers.0.self_attn.q_proj.weight", "layers.0.self_attn.k_proj.weight"
    arrays[q], arrays[k] = np.zeros((63, 24), np.float32), np.zeros((33, 24), np.float32)
    arrays["layers.0.mlp.down_proj.weight"] = np.zeros((24, 36), np.int8)
    arrays["layers.0.mlp.up_proj.bias"] = np.zeros(36, np.float32)
    save_file(arrays, tmp_path / "model.safetensors")
    with pytest.raises(WeightsMismatch) as caught:
        match(request.getfixturevalue(stage), open_checkpoint(tmp_path))
    assert sorted(caught.value.problems) == sorted(
        [
            "norm.weight [24] is missing",
            f"{q} is [63, 24], expected [64, 24]",
            f"{k} is [33, 24], expected [32, 24]",
            "layers.0.mlp.down_proj.weight is i8, expected one of f32, bf16, f16, f64",
            "layers.0.mlp.up_proj.bias [36] is there, but the model does not use it",
        ]
    )
    assert "and 1 more" in str(caught.value)


def test_weights_by_rows(tmp_path: Path) -> None:
    save_file(ARRAYS, tmp_path / "model.safetensors")
    weights = SourceWeights(open_checkpoint(tmp_path))
    parts = [Tensor(name, ARRAYS[name].shape) for name in ("a.weight", "b.weight")]
    param = Param(Value("both", "f32", (9, 4)), cat(parts, 0))
    whole = np.concatenate([ARRAYS["a.weight"], ARRAYS["b.weight"].astype(np.float32)])
    np.testing.assert_array_equal(weights.get(param), whole)
    for rows in (slice(0, 9), slice(2, 5), slice(4, 8), slice(6, 9), np.array([8, 0, 5, 6, 6])):
        np.testing.assert_array_equal(weights.rows(param, rows), whole[rows])
    half = Param(Value("d", "f32", (7,)), Tensor("d", (7,)))
    np.testing.assert_array_equal(weights.get(half), ARRAYS["d"].astype(np.float32))
    data = Param(Value("f", "f32", (3, 1)), Constant((1.0, 2.0, 3.0)))
    np.testing.assert_array_equal(weights.rows(data, slice(1, 3)), [[2.0], [3.0]])
