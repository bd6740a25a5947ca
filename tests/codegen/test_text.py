"""What the compiler does to a model's tokenizer on its way into a pack."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from ferrum.codegen.text import read_text
from ferrum.codegen.tokenizer import plain_merges
from ferrum.errors import FerrumError
from ferrum.text.tokenizer import Tokenizer as PackTokenizer

TEXT = "the cat sat on the mat; the other cats chatted at them."


def bpe(**changes: Any) -> dict[str, Any]:
    """tokenizer.json of a byte-level BPE, whose merges the library writes as pairs."""
    pairs = [("t", "h"), ("th", "e"), ("a", "t"), ("c", "at"), ("\u0120", "the"), ("h", "at"), ("#", "v")]
    tokens = sorted({*pre_tokenizers.ByteLevel.alphabet(), *(a + b for a, b in pairs)})
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    value: dict[str, Any] = json.loads(tokenizer.to_str())
    value["model"].update(changes)
    return value


SPECIAL = {"special": True, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
TEMPLATE_PROCESSING = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
}
FOLDERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # changes of tokenizer.json; other files
    "plain": ({}, {"tokenizer_config.json": {"eos_token": "</s>"}}),
    "added_tokens_decoder": ({}, {"tokenizer_config.json": {
        "bos_token": "<s>", "eos_token": "<|im_end|>", "added_tokens_decoder": {
        "301": {"content": "<|im_end|>", **SPECIAL}, "300": {"content": "<tool>", **SPECIAL, "special": False}}}}),
    "flag of a known token": ({}, {"tokenizer_config.json": {
        "eos_token": "</s>", "added_tokens_decoder": {"1": {"content": "</s>", **SPECIAL}, "2": {"content": "<x>", **SPECIAL}}}}),
    "special_tokens_map": ({}, {"tokenizer_config.json": {"eos_token": "</s>"}, "special_tokens_map.json": {
        "bos_token": "<s>", "eos_token": {"content": "<|im_end|>", **SPECIAL}, "pad_token": "<pad>"}}),
    "map beside a decoder": ({}, {"tokenizer_config.json": {"eos_token": "</s>", "added_tokens_decoder": {}},
                                  "special_tokens_map.json": {"eos_token": "<|im_end|>"}}),
    "added_tokens": ({}, {"tokenizer_config.json": {"eos_token": "<|im_end|>"},
                          "added_tokens.json": {"<x y>": 400, "<|im_end|>": 300}}),
    "extra tokens": ({}, {"tokenizer_config.json": {"eos_token": "</s>", "additional_special_tokens": ["<|im_end|>", "the"]}}),
    "named by the model": ({}, {"tokenizer_config.json": {"eos_token": "</s>", "image_token": "<x>"}}),
    "add_bos_token": ({}, {"tokenizer_config.json": {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}}),
    "no add_bos_token": ({"post_processor": TEMPLATE_PROCESSING}, {"tokenizer_config.json": {
        "bos_token": "<s>", "eos_token": "</s>", "add_bos_token": False, "add_eos_token": True}}),
}  # fmt: skip


def model_folder(path: Path, changes: dict[str, Any], files: dict[str, Any]) -> Path:
    tokenizer = {**bpe(), **changes}
    vocab = {token: i + 2 for token, i in tokenizer["model"]["vocab"].items()}
    tokenizer["model"]["vocab"] = {"<s>": 0, "</s>": 1, **vocab}
    plain = {**SPECIAL, "special": False}
    tokenizer["added_tokens"] = [{"id": 0, "content": "<s>", **SPECIAL}, {"id": 1, "content": "</s>", **plain}]
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    files = {"tokenizer.json": tokenizer, "config.json": config, **files}
    files["tokenizer_config.json"]["tokenizer_class"] = "PreTrainedTokenizerFast"
    for name, value in files.items():
        (path / name).write_text(json.dumps(value), encoding="utf-8")
    return path


@pytest.mark.parametrize("case", FOLDERS)
def test_what_other_files_say_is_read_as_transformers_does(case: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = model_folder(tmp_path, *FOLDERS[case])
    theirs = AutoTokenizer.from_pretrained(folder)
    files = read_text(folder)
    ours = PackTokenizer(files.tokenizer)
    assert ours.special_ids == {i for i, t in theirs.added_tokens_decoder.items() if t.special}
    assert files.record.special_tokens.items() >= theirs.special_tokens_map.items()
    assert theirs.eos_token_id in files.record.eos_token_ids
    for text in ("the cat", "<s>the<|im_end|></s>", "a<x y><tool><x> <pad>"):
        for special in (True, False):
            assert ours.encode(text, special=special) == theirs(text, add_special_tokens=special).input_ids, text
        ids = ours.encode(text)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


HERMES = "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>"
HERMES += "{% endfor %}{% endfor %}{% if false %}</think>{% endif %}"
PLAIN = "{% for m in messages %}{{ m.content }}{% endfor %}"
LISTED = [{"name": "default", "template": PLAIN}, {"name": "tool_use", "template": HERMES}, {"name": "rag", "template": "R"}]


def write_templates(folder: Path, settings: dict[str, Any], files: dict[str, str]) -> Path:
    (folder / "additional_chat_templates").mkdir(parents=True)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    for name, source in files.items():
        (folder / name).write_text(source, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("settings", "files"),
    [
        ({"chat_template": LISTED}, {}),
        ({}, {"chat_template.jinja": PLAIN, "additional_chat_templates/tool_use.jinja": HERMES}),
        ({"chat_template": "OLD"}, {"chat_template.jinja": PLAIN, "additional_chat_templates/tool_use.jinja": HERMES}),
    ],
)
def test_named_templates(settings: dict[str, Any], files: dict[str, str], tmp_path: Path) -> None:
    found = read_text(write_templates(tmp_path, settings, files))
    assert found.templates == {"default": PLAIN, "tool_use": HERMES}
    assert found.record.tool_format == "hermes" and not any("tool format" in note for note in found.notes)
    assert (found.record.reasoning_start, found.record.reasoning_end) == ("<think>", "</think>")


def test_the_record_says_what_a_server_would_have_to_look_for(tmp_path: Path) -> None:
    """Options of the template and the longest token: neither the template's process nor the whole vocabulary is needed."""
    template = PLAIN + "{% if enable_thinking %}.{% endif %}"
    write_templates(tmp_path, {"chat_template": template}, {})
    (tmp_path / "tokenizer.json").write_text(json.dumps(bpe()))
    found = read_text(tmp_path)
    assert found.record.template_options == ["enable_thinking"]
    slow, quick = PackTokenizer(found.tokenizer), PackTokenizer(found.tokenizer, longest_token=found.record.longest_token)
    assert slow.most_chars == quick.most_chars == len("\u0120the")


def test_ids_beyond_the_vocabulary_are_left_out_and_told(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 300, "eos_token_id": [7, 300]}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 4000, "bos_token_id": 301}))
    found = read_text(tmp_path)
    assert found.record.eos_token_ids == [7] and found.record.bos_token_id is None
    assert any("300, 301, 4000" in note and "vocab_size (300)" in note for note in found.notes)


def test_a_template_that_describes_calls_and_shows_none(tmp_path: Path) -> None:
    described = "{% if tools %}Write <tool_call>JSON</tool_call>: {{ tools | tojson }}{% endif %}" + PLAIN
    assert read_text(write_templates(tmp_path, {"chat_template": described}, {})).record.tool_format == "hermes"


def test_without_a_tool_format_the_reason_is_told(tmp_path: Path) -> None:
    found = read_text(write_templates(tmp_path, {"chat_template": PLAIN}, {}))
    assert found.templates == {"default": PLAIN} and found.record.tool_format == ""
    assert [note for note in found.notes if note.startswith("no tool format: its chat template does not show")]
    with pytest.raises(FerrumError) as caught:
        read_text(write_templates(tmp_path / "other", {"chat_template": "{% if %}"}, {}))
    assert caught.value.code == "bad-chat-template"


def test_a_folder_without_a_tokenizer_is_told(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"sp")
    files = read_text(tmp_path)
    assert not files.tokenizer and len(files.notes) == 1
    assert "tokenizer.json" in files.notes[0] and "tokenizer.model" in files.notes[0]


@pytest.mark.parametrize("config", [{"added_tokens_decoder": {"x": {}}}, {"added_tokens_decoder": {"1": {"content": 7}}}])
def test_tokens_that_are_none_are_refused(config: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(FerrumError) as caught:
        read_text(model_folder(tmp_path, {}, {"tokenizer_config.json": config}))
    assert caught.value.code == "bad-tokenizer"


@pytest.mark.parametrize("value", [10**400, -(10**400), float("inf"), float("nan"), 1 << 32], ids=lambda value: f"{value}"[:6])
def test_defaults_out_of_range_are_told(value: float, tmp_path: Path) -> None:
    for key in ("temperature", "top_k", "repetition_penalty"):
        (tmp_path / "generation_config.json").write_text(json.dumps({key: value, "eos_token_id": [7, 10**400]}))
        with pytest.raises(FerrumError, match=f"{key} = .* is out of range") as caught:
            read_text(tmp_path)
        assert len(str(caught.value)) < 300


def test_the_tokenizer_is_the_same() -> None:
    before = json.dumps(bpe()).encode()
    after = plain_merges(before)
    assert json.loads(after)["model"]["merges"][1] == "th e" and len(after) < len(before)
    assert plain_merges(after) == after
    one, two = Tokenizer.from_buffer(before), Tokenizer.from_buffer(after)
    assert json.loads(one.to_str()) == json.loads(two.to_str())
    rng = random.Random(0)
    for _ in range(300):
        text = "".join(rng.choice(TEXT + "\u00e9\u4e2d\n#v") for _ in range(40))
        assert one.encode(text).ids == two.encode(text).ids


@pytest.mark.parametrize("pair", [["a ", "b"], ["", "b"], ["#version", "b"], ["a"], "a b", [1, 2]])
def test_what_could_change_is_left_alone(pair: object) -> None:
    data = json.dumps(bpe(merges=[["t", "h"], pair])).encode()
    assert plain_merges(data) == data


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"7", b'{"model": null}', b'{"model": {"merges": 3}}', b"\xff"])
def test_what_is_no_such_tokenizer_is_left_alone(data: bytes) -> None:
    assert plain_merges(data) == data
