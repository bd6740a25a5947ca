"""The tokenizer and the chat template: nothing is lost, and every reader of the folder agrees."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from ferrum.graphs.tiny.chat import MODEL_FOLDER, TEMPLATE_FILE, Chat
from ferrum.graphs.tiny.data import Message, tool_schema
from ferrum.graphs.tiny.questions import questions
from ferrum.graphs.tiny.training.export import hf_config
from ferrum.graphs.tiny.training.tokenizer import VOCAB_SIZE, make_tokenizer

TOKENIZER = Tokenizer.from_file(str(MODEL_FOLDER / "tokenizer.json"))
CHAT = Chat(TOKENIZER)
CALL = {"id": "1", "type": "function", "function": {"name": "get_time", "arguments": {"city": "Köln"}}}
CHATS: list[tuple[list[Message], list[dict[str, Any]]]] = [
    ([{"role": "user", "content": "Hi"}], []),
    ([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"},
      {"role": "user", "content": "Bye"}], []),
    ([{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hi"}], [tool_schema("send_message")]),
    ([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": None, "tool_calls": [CALL, CALL]},
      {"role": "tool", "content": "10:30"}, {"role": "tool", "content": "10:31"}, {"role": "user", "content": "Thanks"}],
     [tool_schema("get_time"), {"type": "function", "function": {"name": "stop"}}]),
    ([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Wait.", "tool_calls": [
        {"type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}]}], []),
]


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_survives(text: str) -> None:
    ids = TOKENIZER.encode(text, add_special_tokens=False).ids
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == text


def test_the_committed_file_is_what_the_script_makes() -> None:
    assert json.loads(make_tokenizer().to_str()) == json.loads(TOKENIZER.to_str())
    assert json.loads((MODEL_FOLDER / "config.json").read_text()) == hf_config()
    assert json.loads((MODEL_FOLDER / "tokenizer_config.json").read_text())["chat_template"] == TEMPLATE_FILE.read_text()


def test_letters_and_digits_of_unknown_words_are_single_tokens() -> None:
    assert TOKENIZER.encode("47 kxqw").tokens == ["4", "7", "Ġ", "k", "x", "q", "w"]
    assert TOKENIZER.encode("What is<|im_end|>").tokens == ["What", "Ġis", "<|im_end|>"]
    assert TOKENIZER.get_vocab_size() == VOCAB_SIZE


@pytest.mark.parametrize("generate", [False, True])
def test_transformers_renders_and_encodes_the_same(generate: bool) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(MODEL_FOLDER)
    for messages, tools in [
        *CHATS,
        *((list(p.messages), list(p.tools)) for p in questions({"tool": 3, "recall": 3, "tool_answer": 3})),
    ]:
        expected = theirs.apply_chat_template(messages, tools=tools or None, add_generation_prompt=generate, tokenize=False)
        assert CHAT.render(messages, tools, generate) == expected
        assert CHAT.encode(expected) == theirs(expected)["input_ids"]


def test_rendered_form() -> None:
    assert CHAT.render(*CHATS[0], add_generation_prompt=True) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    text = CHAT.render(*CHATS[3])
    assert text.startswith("<|im_start|>system\n<tools>\nget_time(city: string)\nstop()\n</tools><|im_end|>\n")
    assert '<tool_call>\n{"name": "get_time", "arguments": {"city": "Köln"}}\n</tool_call>\n<tool_call>' in text
    assert (
        "<|im_start|>user\n<tool_response>\n10:30\n</tool_response>\n<tool_response>\n10:31\n</tool_response><|im_end|>" in text
    )
    assert '"arguments": {"a": 1}}' in CHAT.render(*CHATS[4])


def test_only_what_the_assistant_says_is_learned() -> None:
    ids = CHAT.encode(CHAT.render(*CHATS[1]))
    said = TOKENIZER.decode([t for t, m in zip(ids, CHAT.answer_mask(ids), strict=True) if m], skip_special_tokens=False)
    assert said == "Hello!<|im_end|>"
