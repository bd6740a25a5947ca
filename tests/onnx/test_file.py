"""ONNX files: what was written is read; whatever is wrong with one is said in a line, at once and in little memory."""

from __future__ import annotations

import os
import random
import resource
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, external_data_helper, helper

from ferrum.errors import FerrumError
from ferrum.graphs.frontend.onnx import import_onnx
from ferrum.graphs.onnx.file import OnnxFile
from ferrum.graphs.weights import open_checkpoint
from tests.onnx.maker import IDS, model, node, nodes, put

MUTANTS = int(os.environ.get("MUTANTS", "5000"))
WEIGHT = np.arange(12, dtype=np.float32).reshape(4, 3)


def small() -> onnx.ModelProto:
    """Every way in which a tensor is stored in the file, attributes of every kind, a few ops."""
    two = node("Constant", [], ["two"], value=helper.make_tensor("", TensorProto.FLOAT, [], [2.0]))
    text = """
        rows = Gather(table, input_ids)
        normed = LayerNormalization(rows, gain) epsilon=1e-5 axis=-1
        twice = Mul(normed, two)
        flat = Reshape(twice, shape)
        logits = MatMul(flat, head)
    """
    made = model([two, *nodes(text)], {"table": WEIGHT, "gain": np.ones(3, np.float16), "head": np.ones((3, 5), np.float64)})
    made.graph.initializer.append(helper.make_tensor("shape", TensorProto.INT64, [3], [0, 0, 3]))
    made.graph.initializer.append(helper.make_tensor("halves", TensorProto.FLOAT16, [2], [0.5, 2.0]))
    made.graph.initializer.append(helper.make_tensor("typed", TensorProto.FLOAT, [2], [0.5, 2.0]))
    return made


def outside(folder: Path) -> Path:
    """Weights in a file beside it."""
    made = small()
    external_data_helper.convert_model_to_external_data(made, location="w.bin", size_threshold=0)
    onnx.save(made, folder / "model.onnx")
    return folder / "model.onnx"


def test_what_was_written_is_read(tmp_path: Path) -> None:
    file = OnnxFile(put(tmp_path, small()))
    assert [value.name for value in file.inputs] == ["input_ids"] and file.inputs[0].shape == ("batch", "seq")
    assert [n.op for n in file.nodes] == ["Gather", "LayerNormalization", "Mul", "Reshape", "MatMul"]
    assert file.nodes[1].integer("axis") == -1 and abs(file.nodes[1].floating("epsilon", 0.0) - 1e-5) < 1e-12
    np.testing.assert_array_equal(file.tensors["table"].array(), WEIGHT)
    assert not file.tensors["table"].array().flags.owndata
    assert file.tensors["shape"].array().tolist() == [0, 0, 3] and file.tensors["two"].array() == 2.0
    assert file.tensors["halves"].array().tolist() == [0.5, 2.0] and file.tensors["typed"].array().tolist() == [0.5, 2.0]
    assert (file.tensors["head"].dtype, file.tensors["gain"].dtype) == ("f64", "f16")


def test_weights_beside_the_file_are_mapped(tmp_path: Path) -> None:
    with open_checkpoint(outside(tmp_path)) as checkpoint:
        np.testing.assert_array_equal(checkpoint.read("table"), WEIGHT)
        assert len(checkpoint.files) == 2 and checkpoint.nbytes() > WEIGHT.nbytes


def located(folder: Path, **said: str) -> Path:
    made = small()
    tensor = made.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.extend(onnx.StringStringEntryProto(key=key, value=value) for key, value in said.items())
    return put(folder, made)


@pytest.mark.parametrize(
    ("said", "code", "words"),
    [
        ({"location": "../w.bin"}, "bad-path", "not a plain relative path"),
        ({"location": "/etc/passwd"}, "bad-path", "not a plain relative path"),
        ({"location": "sub/../../w.bin"}, "bad-path", "not a plain relative path"),
        ({"location": ""}, "bad-path", "not a plain relative path"),
        ({"location": "link.bin"}, "bad-path", "leads out of its folder through a link"),
        ({"location": "pipe"}, "bad-path", "not a regular file"),
        ({"location": "absent.bin"}, "checkpoint-unreadable", "cannot be read"),
        ({"location": "w.bin", "offset": "80"}, "checkpoint-corrupt", "tensor table ends behind the end of w.bin"),
        ({"location": "w.bin", "offset": "-4"}, "checkpoint-corrupt", "offset '-4', which is no position"),
        ({"location": "w.bin", "offset": "1e3"}, "checkpoint-corrupt", "which is no position"),
        ({"location": "w.bin", "offset": "9" * 30}, "checkpoint-corrupt", "which is no position"),
        ({"location": "w.bin", "length": "4"}, "checkpoint-corrupt", "has 4 bytes in w.bin, its shape needs 48"),
    ],
)
def test_files_beside_it_stay_inside_their_folder(said: dict[str, str], code: str, words: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    path = located(folder, **said)
    (folder / "w.bin").write_bytes(bytes(100))
    (tmp_path / "w.bin").write_bytes(bytes(100))
    os.symlink(tmp_path / "w.bin", folder / "link.bin")
    os.mkfifo(folder / "pipe")
    with pytest.raises(FerrumError, match=words) as caught:
        OnnxFile(path)
    assert caught.value.code == code and "\n" not in str(caught.value)


def changed(change: str) -> bytes:
    made = small()
    tensor = made.graph.initializer[0]
    match change:
        case "dims":
            tensor.dims[0] = 1 << 62
        case "negative":
            tensor.dims[0] = -4
        case "short":
            tensor.raw_data = tensor.raw_data[:-1]
        case "twice":
            made.graph.initializer.append(tensor)
        case "dtype":
            tensor.data_type = 99
        case "name":
            tensor.name = "a b"
        case "opset":
            made.opset_import[0].version = 9
        case "empty":
            made.ClearField("graph")
        case "unmade":
            made.graph.node[2].input[0] = "nobody"
        case "again":
            made.graph.node[3].output[0] = "rows"
        case "attribute":
            epsilon = next(one for one in made.graph.node[2].attribute if one.name == "epsilon")
            epsilon.ClearField("f")
            epsilon.type = onnx.AttributeProto.STRING
        case "axes":
            tensor.dims.extend([1] * 10)
    return made.SerializeToString()


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ("dims", "checkpoint-corrupt", "tensor table of shape .* is larger than any file"),
        ("negative", "checkpoint-corrupt", "tensor table has the shape"),
        ("axes", "checkpoint-corrupt", "tensor table has the shape"),
        ("short", "checkpoint-corrupt", "tensor table has 47 bytes, its shape needs 48"),
        ("twice", "checkpoint-corrupt", "tensor table is there twice"),
        ("dtype", "checkpoint-corrupt", "tensor table has elements of type 99"),
        ("name", "checkpoint-corrupt", "has a name that is not visible ASCII"),
        ("opset", "format-unsupported", r"it uses opset 9 of ONNX \(read: 17 to 23\)"),
        ("empty", "checkpoint-corrupt", "it is not an ONNX model"),
        ("unmade", "checkpoint-corrupt", "node the_LayerNormalization reads 'nobody', which nothing before it makes"),
        ("again", "checkpoint-corrupt", "node the_Mul makes rows, which is there already"),
        ("attribute", "checkpoint-corrupt", "node the_LayerNormalization has the epsilon"),
    ],
)
def test_what_is_wrong_is_said(change: str, code: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(FerrumError, match=words) as caught:
        import_onnx(put(tmp_path, changed(change)))
    assert caught.value.code == code and "model.onnx" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "raw", [b"", b"\0", b"GGUF" + bytes(40), b"\x3a\xff\xff\xff\xff\x0f", b"\xff" * 30, b"\x3a\x02\x0a\x7f", b"not a model"]
)
def test_no_model_is_no_model(raw: bytes, tmp_path: Path) -> None:
    with pytest.raises(FerrumError) as caught:
        import_onnx(put(tmp_path, raw))
    assert caught.value.code in ("checkpoint-corrupt", "checkpoint-unreadable") and "\n" not in str(caught.value)


def test_pipes_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.onnx")
    with pytest.raises(FerrumError, match="not a regular file"):
        OnnxFile(tmp_path / "model.onnx")


def test_parts_are_counted_before_they_take_memory(tmp_path: Path) -> None:
    """Two bytes are a node: a few megabytes of them would be gigabytes of objects."""
    nodes = b"\x0a\x00" * (1 << 20)
    size = len(nodes)
    length = bytes([size & 127 | 128, size >> 7 & 127 | 128, size >> 14 & 127 | 128, size >> 21])
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(FerrumError, match="holds more parts than files of its size do"):
        OnnxFile(put(tmp_path, b"\x3a" + length + nodes))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < (size >> 9) + (256 << 10)
    assert time.monotonic() - started < 10


def mutant(raw: bytes, seed: int) -> bytes:
    """One to four changes: bits, bytes, lengths, cuts, repeats."""
    chance, data = random.Random(seed), bytearray(raw)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(max(1, len(data)))
        match chance.randrange(6):
            case 0 if at < len(data):
                data[at] ^= 1 << chance.randrange(8)
            case 1:
                data[at : at + 1] = bytes([chance.choice([0, 1, 2, 3, 7, 8, 10, 13, 16, 18, 26, 34, 42, 58, 127, 128, 255])])
            case 2:
                data[at : at + 9] = b"\xff" * chance.randint(1, 9) + b"\x01"
            case 3:
                del data[at : at + chance.randint(1, 40)]
            case 4:
                data[at:at] = data[at : at + chance.randint(1, 64)]
            case _:
                del data[chance.randrange(len(data) + 1) :]
    return bytes(data)


def tried(raw: bytes, seeds: range, folder: Path) -> list[str]:
    """What is wrong with how mutants are taken: each is read to its end, or refused in one line within a second."""
    wrong = []
    for seed in seeds:
        path, started = put(folder, mutant(raw, seed)), time.monotonic()
        try:
            import_onnx(path)
            with open_checkpoint(path) as checkpoint:
                checkpoint.digest()
        except FerrumError as error:
            if "\n" in str(error) or len(str(error)) > 2000:
                wrong.append(f"{seed}: {error}")
        except Exception as error:
            wrong.append(f"{seed}: {type(error).__name__}: {error}")
        if time.monotonic() - started > 1:
            wrong.append(f"{seed}: {time.monotonic() - started:.1f} s")
    return wrong


def raw_of(kind: str, folder: Path) -> bytes:
    if kind == "small":
        return small().SerializeToString()
    path = outside(folder)
    return path.read_bytes()


@pytest.mark.parametrize("kind", ["small", "outside"])
def test_mutants_are_read_or_refused(kind: str, tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert tried(raw_of(kind, tmp_path), range(150), tmp_path) == []
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["small", "outside"])
def test_many_mutants_are_read_or_refused(kind: str, tmp_path: Path) -> None:
    assert tried(raw_of(kind, tmp_path), range(1000, 1000 + MUTANTS), tmp_path) == []


def test_an_input_that_is_a_weight_is_one(tmp_path: Path) -> None:
    """Older exporters list initializers among the inputs."""
    made = small()
    made.graph.input.append(helper.make_tensor_value_info("table", TensorProto.FLOAT, [4, 3]))
    assert [value.name for value in OnnxFile(put(tmp_path, made)).inputs] == [IDS.name]
