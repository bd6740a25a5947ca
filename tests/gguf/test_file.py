"""GGUF files: what was written is read; whatever is wrong with one is said in a line, at once and in little memory."""

from __future__ import annotations

import os
import resource
import struct
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ferrum.errors import FerrumError
from ferrum.graphs.model_files import open_files
from ferrum.graphs.weights import open_checkpoint
from ferrum.graphs.weights.gguf import open_gguf
from tests.gguf.maker import SIZES, one_layer, random_blocks, write
from tests.gguf.raw import file, mutant, put, small, tensor, text, value

ARCHITECTURE = ("general.architecture", value("str", "llama"))
DATA = b"\0" * 64
MUTANTS = int(os.environ.get("MUTANTS", "5000"))


def test_what_was_written_is_read(tmp_path: Path) -> None:
    model = open_gguf(put(tmp_path, small()))
    (found,) = model.files
    assert model.architecture == "llama" and model.get("a.long", int) == 1 << 40 and model.get("a.flag", bool) is True
    assert model.texts("tokenizer.ggml.tokens") == ["a", "b", "é", ""]
    assert [array.tolist() for array in found.metadata["a.arrays"]] == [[1, 2], [3]]
    assert found.read("x").tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert found.blocks == {"y": "q8_0"} and found.tensors["y"].shape == (2, 68)
    assert found.read("y").reshape(-1).tolist() == list(range(136)) and found.read("z").tolist() == [1, 1, 1]
    assert not found.read("x").flags.owndata


def test_the_package_s_files_are_read(tmp_path: Path) -> None:
    raw = random_blocks("q4_k", 3, 512)
    values = {"llama.block_count": 2, "a.strings": ["x", "yy"]}
    path = write(tmp_path / "a.gguf", "llama", values, {"w": (raw, "q4_k"), "v": np.arange(5, dtype=np.float32)})
    (found,) = open_gguf(path).files
    np.testing.assert_array_equal(found.read("w"), raw)
    assert found.read("v").tolist() == [0, 1, 2, 3, 4] and found.tensors["v"].offset % 32 == 0


def pairs(*more: tuple[str, bytes]) -> bytes:
    return file([ARCHITECTURE, *more], [tensor("w", (4,), 0, 0)], DATA)


def tensors(*given: bytes, data: bytes = DATA) -> bytes:
    return file([ARCHITECTURE], list(given), data)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "has 0 bytes, a header needs 24"),
        (b"GGUF" + b"\0" * 8, "has 12 bytes"),
        (b"GGML" + b"\0" * 40, "begins with b'GGML'"),
        (file([ARCHITECTURE], [], b"", counts=(1 << 63, 1)), "number of tensors is 9223372036854775808"),
        (file([ARCHITECTURE], [], b"", counts=(0, 1 << 40)), "number of metadata pairs is 1099511627776"),
        (pairs((ARCHITECTURE[0], ARCHITECTURE[1])), "general.architecture is there twice"),
        (pairs(("a\nb", value("u32", 1))), "is not visible ASCII"),
        (pairs(("a", struct.pack("<I", 99))), "metadata a has the unknown type 99"),
        (pairs(("a", struct.pack("<IB", 7, 2))), "metadata a is 2 where it is true or false"),
        (pairs(("a", struct.pack("<IQ", 8, 1 << 62))), "metadata a has a string of"),
        (pairs(("a", struct.pack("<IQ", 8, 1 << 20))), "metadata a needs 1048576 bytes where the file has"),
        (pairs(("a", struct.pack("<IIQ", 9, 4, 1 << 61))), "metadata a has 2305843009213693952 entries"),
        (pairs(("a", struct.pack("<IIQ", 9, 8, 1 << 50))), "metadata a has 1125899906842624 entries"),
        (pairs(("a", struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 30)), "elements of type 9 at depth 4"),
        (pairs(("a", struct.pack("<IIQ", 9, 77, 0))), "elements of type 77"),
        (pairs(("a", struct.pack("<I", 8) + text(b"\xff\xfe"))), "metadata a holds text that is not UTF-8"),
        (pairs(("general.alignment", value("u32", 0))), "general.alignment is 0, not a power of two"),
        (pairs(("general.alignment", value("u32", 33))), "general.alignment is 33"),
        (pairs(("general.alignment", value("u32", 1 << 30))), "general.alignment is 1073741824"),
        (pairs(("general.alignment", value("bool", True))), "general.alignment is True"),
        (pairs(("general.alignment", value("str", "32"))), "general.alignment is 32"),
        (tensors(tensor("w", (1 << 62, 1 << 62, 16), 0, 0)), "does not fit the file"),
        (tensors(tensor("w", (0,), 0, 0)), r"tensor w of shape \[0\] does not fit"),
        (tensors(tensor("w", (), 0, 0)), "tensor w has 0 axes"),
        (tensors(tensor("w", (1, 1, 1, 1, 1), 0, 0)), "tensor w has 5 axes"),
        (tensors(tensor("w", (4,), 9, 0)), "tensor w is of the unknown type 9"),
        (tensors(tensor("w", (33,), 8, 0)), "rows of 33, which are not whole blocks of 32"),
        (tensors(tensor("w", (4,), 0, 16)), "begins at 16, which is not a multiple of 32"),
        (tensors(tensor("w", (4,), 0, 64)), "ends 16 bytes behind the end of the file"),
        (tensors(tensor("w", (4,), 0, 1 << 62)), "bytes behind the end of the file"),
        (tensors(tensor("w", (12,), 0, 0), tensor("v", (4,), 0, 32)), "tensor v overlaps another tensor"),
        (tensors(tensor("w", (4,), 0, 0), tensor("w", (4,), 0, 32)), "w is there twice"),
        (tensors(tensor("w w", (4,), 0, 0)), "which is not visible ASCII"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(raw: bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(FerrumError, match=words) as caught:
        open_gguf(put(tmp_path, raw))
    assert caught.value.code == "checkpoint-corrupt" and "model.gguf" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (file([ARCHITECTURE], [tensor("w", (4,), 0, 0)], DATA, version=1), "GGUF version 1 is not read"),
        (file([ARCHITECTURE], [tensor("w", (4,), 0, 0)], DATA, version=3 << 24), "the file is big-endian"),
        (file([ARCHITECTURE], [], b""), "a vocabulary without weights"),
        (pairs(("general.type", value("str", "mmproj"))), r"\(mmproj\) of a model, not the model"),
        (file([("general.architecture", value("str", "clip"))], [tensor("w", (4,), 0, 0)], DATA), r"\(mmproj\) of a model"),
        (pairs(("general.type", value("str", "imatrix"))), "an importance matrix"),
    ],
)
def test_what_is_no_model_is_named(raw: bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(FerrumError, match=words) as caught:
        open_gguf(put(tmp_path, raw))
    assert caught.value.code == "format-unsupported"


def test_pipes_and_folders_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(FerrumError, match="not a regular file"):
        open_gguf(tmp_path / "pipe.gguf")


def split(folder: Path, change: dict[str, int] | None = None) -> Path:
    said = {"split.count": 2, "split.tensors.count": 2} | (change or {})
    for number in range(2):
        more = [(key, value("u32", given)) for key, given in {"split.no": number, **said}.items()]
        raw = file([ARCHITECTURE, *more], [tensor(f"w{number}", (4,), 0, 0)], struct.pack("<4f", number, 1, 2, 3))
        put(folder, raw, f"m-{number + 1:05d}-of-00002.gguf")
    return folder / "m-00001-of-00002.gguf"


def test_split_files_are_one_model(tmp_path: Path) -> None:
    first = split(tmp_path)
    for path in (first, tmp_path / "m-00002-of-00002.gguf"):
        model = open_gguf(path)
        assert [file.read(f"w{n}").tolist()[0] for n, file in enumerate(model.files)] == [0, 1] and model.path == first


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"split.count": 3}, "says that it is part 1 of 3, its name says part 1 of 2"),
        ({"split.no": 1}, "says that it is part 2 of 2, its name says part 1 of 2"),
        ({"split.tensors.count": 5}, "2 tensors are in 2 files, which say 5"),
    ],
)
def test_split_files_must_belong_together(change: dict[str, int], words: str, tmp_path: Path) -> None:
    with pytest.raises(FerrumError, match=words):
        open_gguf(split(tmp_path, change))


def test_missing_and_lonely_shards(tmp_path: Path) -> None:
    first = split(tmp_path)
    alone = first.rename(tmp_path / "alone.gguf")
    with pytest.raises(FerrumError, match="its name says part 1 of 1"):
        open_gguf(alone)
    with pytest.raises(FerrumError, match="1 of 2 files are missing: m-00001-of-00002.gguf") as caught:
        open_gguf(tmp_path / "m-00002-of-00002.gguf")
    assert caught.value.code == "checkpoint-missing"
    os.symlink("/etc/hostname", first)
    with pytest.raises(FerrumError) as caught:
        open_gguf(tmp_path / "m-00002-of-00002.gguf")
    assert caught.value.code == "bad-path"


def whole(folder: Path) -> bytes:
    """A file that would compile, with a vocabulary."""
    words = {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "qwen2", "tokenizer.ggml.tokens": [chr(97 + i) for i in range(20)],
        "tokenizer.ggml.token_type": [1] * 20, "tokenizer.ggml.merges": ["a b"], "tokenizer.ggml.eos_token_id": 2,
    }  # fmt: skip
    return write(folder / "whole.gguf", "llama", SIZES, one_layer(), words=words).read_bytes()


def tried(raw: bytes, seeds: range, folder: Path) -> list[str]:
    """What is wrong with how mutants are taken: each is read to its end, or refused in one line within a second."""
    wrong = []
    for seed in seeds:
        path, started = put(folder, mutant(raw, seed)), time.monotonic()
        try:
            with open_checkpoint(path) as checkpoint:
                checkpoint.digest()
            files = open_files(path)
            for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "README.md"):
                files.read(name)
        except FerrumError as error:
            if "\n" in str(error) or len(str(error)) > 1000:
                wrong.append(f"{seed}: {error}")
        except Exception as error:
            wrong.append(f"{seed}: {type(error).__name__}: {error}")
        if time.monotonic() - started > 1:
            wrong.append(f"{seed}: {time.monotonic() - started:.1f} s")
    return wrong


@pytest.mark.parametrize("make", [lambda _: small(), whole], ids=["small", "whole"])
def test_mutants_are_read_or_refused(make: Callable[[Path], bytes], tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert tried(make(tmp_path), range(150), tmp_path) == []
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10


@pytest.mark.slow
@pytest.mark.parametrize("make", [lambda _: small(), whole], ids=["small", "whole"])
def test_many_mutants_are_read_or_refused(make: Callable[[Path], bytes], tmp_path: Path) -> None:
    assert tried(make(tmp_path), range(1000, 1000 + MUTANTS), tmp_path) == []
