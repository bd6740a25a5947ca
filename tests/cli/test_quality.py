"""What the command line says of a pack's quality, and of two packs beside one another."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from ferrum.cli.main import main
from ferrum.pack.reader import open_pack
from ferrum.pack.writer import PackWriter
from ferrum.text.tokenizer import Tokenizer
from tests.cli.packs import write_pack
from tests.conftest import CommandLine
from tests.pack.build import parts_of, with_manifest
from tests.pack.helpers import write_minimal_pack
from tests.pack.test_quality import CARD, with_card


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return with_card(tmp_path / "good.fpk")


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    return with_card(tmp_path / "bad.fpk", msgspec.structs.replace(CARD, kl_mean=0.4, top1=0.69, measured="weights"))


def test_explain_shows_the_card(good: Path, bad: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(good), "--quality"]) == 0
    text = capsys.readouterr().out
    assert "0.01 nats a token, 0.25 at the 99th percentile" in text and "98.0 %" in text and "21.5, of the model 21" in text
    assert "128 of the texts" in text and "the pack's own code" in text and "near its model" in text
    assert main(["explain", str(bad), "--quality"]) == 0
    text = capsys.readouterr().out
    assert "bad: more than KL 0.15 or less than top-1 85 %" in text and "from the stored weights" in text
    assert main(["explain", str(bad), "--quality", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["kl_mean"] == 0.4 and said["bad"] is True and said["measured"] == "weights"


def test_a_pack_without_a_card_is_one_line(tmp_path: Path, tiny_pack: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(tiny_pack), "--quality"]) == 1
    assert capsys.readouterr().err.startswith("error: nothing in the pack is quantized, so there is no card · ")
    assert main(["explain", "quality-missing"]) == 0


def test_list_has_a_short_form(good: Path, bad: Path, tmp_path: Path, ferrum: CommandLine) -> None:
    write_minimal_pack(tmp_path / "none.fpk")
    (tmp_path / "half.fpk").write_bytes(b"PK\x03\x04")
    lines = {line.split()[0]: line for line in ferrum("list", "-v").stdout.splitlines()}
    assert lines["NAME"].endswith("QUALITY") and lines["good.fpk"].endswith("KL 0.01 nats a token, top-1 98.0 %")
    assert lines["bad.fpk"].endswith("top-1 69.0 %, bad")
    assert all(lines[name].endswith(" -") for name in ("none.fpk", "half.fpk"))
    assert "QUALITY" not in ferrum("list").stdout
    said = {entry["name"]: entry for entry in json.loads(ferrum("list", "-v", "--json").stdout)}
    assert "0.01" in said["good.fpk"]["quality"] and said["none.fpk"]["quality"] == ""


# ---- diff


def changed(pack: Path, path: Path, **changes: object) -> Path:
    """``pack`` with other values in its manifest's records, by ``record__field``."""

    def edit(text: bytes) -> bytes:
        manifest = msgspec.json.decode(text)
        for name, value in changes.items():
            record, field = name.split("__")
            manifest[record][field] = value
        return msgspec.json.encode(manifest, order="sorted")

    path.write_bytes(with_manifest(parts_of(pack), edit))
    return path


def test_a_pack_and_itself_differ_in_nothing(tiny_pack: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", str(tiny_pack), str(tiny_pack)]) == 0
    text = capsys.readouterr().out
    assert text.startswith("the packs say the same of themselves\n") and "100.0 % of 512 positions" in text
    assert "KL(A || B)       0 nats a token, 0 at" in text and "tokens/s: B is " in text
    assert main(["diff", str(tiny_pack), str(tiny_pack), "--json", "--threads", "1"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["differences"] == [] and said["quality"]["kl_mean"] == 0 and said["quality"]["top1"] == 1
    assert said["quality"]["perplexity_a"] == said["quality"]["perplexity_b"]
    assert len(said["speed"]["samples"]) == 3 and all(rate > 0 for pair in said["speed"]["samples"] for rate in pair)


def test_packs_are_compared_on_a_text_of_the_user(tiny_pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Several steps and a last piece that is shorter; each token but the first is predicted once."""
    text = tmp_path / "text.txt"
    text.write_text("What is 17 + 25? It is 42, and the capital of France is Paris. " * 60, encoding="utf-8")
    with open_pack(tiny_pack) as pack:
        count = len(Tokenizer(pack.member("tokenizer.json")).encode(text.read_text(encoding="utf-8")))
    assert count > 5 * 128 and count % 128 > 1
    assert main(["diff", str(tiny_pack), str(tiny_pack), "--text", str(text), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)["quality"]
    assert said["positions"] == count - 1 and said["kl_mean"] == 0 and said["top1"] == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "there is no such file"), (b"", "the file is empty"), (b" \n", "the file is empty"),
        (b"a\xff", "it cannot be read"), (b"a", "fewer than two tokens"), (b"a" * (2**22 + 1), "4,194,305 bytes"),
    ],
)  # fmt: skip
def test_a_text_that_cannot_be_compared_is_one_line(
    content: bytes | None, words: str, tiny_pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    if content is not None:
        text.write_bytes(content)
    assert main(["diff", str(tiny_pack), str(tiny_pack), "--text", str(text)]) == 1
    said = capsys.readouterr()
    assert said.out == "" and words in said.err and str(text) in said.err and len(said.err.splitlines()) == 1, said.err


def test_the_difference_that_decides_most_comes_first(tiny_pack: Path, good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", str(tiny_pack), str(good), "--static", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    found = {row["what"]: (row["a"], row["b"]) for row in said["differences"]}
    assert list(found)[0] == "model" and list(found)[-2:] == ["size", "weights' size"]
    assert found["model"] == ("tiny (qwen3)", "minimal (qwen3)")
    assert found["tensor, first"][1] == "embed f32 plain 16 x 8" and "quality" not in said and "speed" not in said
    assert set(found) >= {"vocabulary", "target", "formats", "states", "graph, first", "kernel, first", "kernels"}
    assert main(["diff", str(tiny_pack), str(good), "--static"]) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["WHAT", "A", "B"]


def test_what_cannot_be_compared_is_one_line(tiny_pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    elsewhere = changed(tiny_pack, tmp_path / "elsewhere.fpk", target__features=["no_such_feature"])
    with open_pack(tiny_pack) as pack:
        members = {m.name: bytes(pack.member(m.name)) for m in pack.manifest.members if m.name != "tokenizer.json"}
        manifest = msgspec.structs.replace(pack.manifest, members=[], required=["weights", "programs", "code"])
    with PackWriter(tmp_path / "mute.fpk") as writer:
        for name, data in members.items():
            writer.add(name, data)
        mute = writer.finish(manifest, record=False)
    cases = {
        tmp_path / "none.fpk": "there is no such pack",
        elsewhere: "which lacks no_such_feature",
        mute: "the pack has no tokenizer, so it reads no text",
        write_pack(tmp_path / "other.fpk"): "their vocabularies differ",
    }
    for path, words in cases.items():
        for pair in ((tiny_pack, path), (path, tiny_pack)):
            assert main(["diff", *map(str, pair), "--trust"]) == 1
            said = capsys.readouterr()
            assert said.out == "" and words in said.err and len(said.err.splitlines()) == 1, said.err
    assert main(["diff", str(tiny_pack), str(elsewhere)]) == 1
    assert "--trust" in capsys.readouterr().err
