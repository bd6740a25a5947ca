"""Where a prompt leaves the model: before an answer, in the middle of one, or behind a reasoning that is closed already."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from ferrum.text.chat_template import ChatTemplate
from tests.server import harness
from tests.server.harness import TEXT, Running, running, says, sse_events, tokenizer

CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
BEGUN = [{"role": "user", "content": "count"}, {"role": "assistant", "content": "one, two"}]
CALL = {"id": "a", "function": {"name": "f", "arguments": "{}"}}
CONTINUED = "<|im_start|>user\ncount<|im_end|>\n<|im_start|>assistant\none, two"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(says(" three")) as made:
        yield made


def prompt_of(server: Running) -> str:
    return tokenizer().decode(server.backend.requests[-1][0], skip_special=False)


def test_an_answer_that_is_begun_is_continued(server: Running) -> None:
    for more in ({}, {"add_generation_prompt": False}):
        status, body, _ = server.post(CHAT, {"messages": BEGUN, "continue_final_message": True, **more})
        assert status == 200 and prompt_of(server) == CONTINUED
        assert body["choices"][0]["message"]["content"] == " three"  # only what is new, and its first blank
    events = sse_events(server.post(CHAT, {"messages": BEGUN, "continue_final_message": True, "stream": True})[1])
    assert "".join(e["choices"][0]["delta"].get("content", "") for e in events[:-1]) == " three"
    parts = [BEGUN[0], {"role": "assistant", "content": [{"type": "text", "text": "one, two"}]}]
    assert server.post(CHAT, {"messages": parts, "continue_final_message": True})[0] == 200
    assert prompt_of(server) == CONTINUED
    assert server.post(CHAT, {"messages": BEGUN})[0] == 200  # OpenAI's meaning: another message follows
    assert prompt_of(server) == f"{CONTINUED}<|im_end|>\n<|im_start|>assistant\n"
    assert server.post(CHAT, {"messages": BEGUN, "add_generation_prompt": False})[0] == 200
    assert prompt_of(server) == f"{CONTINUED}<|im_end|>\n"


def test_anthropic_s_prefix_of_an_answer_is_continued(server: Running) -> None:
    status, body, _ = server.post(MESSAGES, {"max_tokens": 9, "messages": BEGUN})
    assert status == 200 and prompt_of(server) == CONTINUED and body["content"][0]["text"] == " three"
    counted = server.post(f"{MESSAGES}/count_tokens", {"messages": BEGUN})[1]["input_tokens"]
    assert counted == len(server.backend.requests[-1][0])


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": BEGUN, "add_generation_prompt": True}, "add_generation_prompt"),
        ({"messages": BEGUN[:1]}, "continue_final_message"),
        ({"messages": [BEGUN[0], {"role": "assistant", "content": ""}]}, "continue_final_message"),
        ({"messages": [BEGUN[0], {**BEGUN[1], "tool_calls": [CALL]}]}, "continue_final_message"),
    ],
)
def test_what_cannot_be_continued_is_refused(server: Running, fields: dict[str, Any], param: str) -> None:
    status, body, _ = server.post(CHAT, {"continue_final_message": True, **fields})
    assert status == 400 and body["error"]["param"] == param


def test_the_prompt_can_be_looked_at(server: Running) -> None:
    status, body, _ = server.post("/apply-template", {"messages": BEGUN[:1]})
    assert status == 200 and body == {"prompt": "<|im_start|>user\ncount<|im_end|>\n<|im_start|>assistant\n"}
    shown = server.post("/apply-template", {"messages": BEGUN[:1], "add_generation_prompt": False})[1]["prompt"]
    assert shown == "<|im_start|>user\ncount<|im_end|>\n"
    tools = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]
    assert "<tools>\nadd(" in server.post("/apply-template", {"messages": BEGUN[:1], "tools": tools})[1]["prompt"]
    assert (
        "<tools>"
        not in server.post("/apply-template", {"messages": BEGUN[:1], "tools": tools, "tool_choice": "none"})[1]["prompt"]
    )


ALWAYS = "{% for m in messages %}<{{ m.content }}>{% endfor %}{% if add_generation_prompt %}A:<think>\n{% endif %}"
MAYBE = "{% for m in messages %}<{{ m.content }}>{% endfor %}{% if add_generation_prompt %}A:{% endif %}"
SWITCHED = MAYBE.replace("A:", "A:{% if enable_thinking is false %}<think></think>{% endif %}")


@pytest.mark.parametrize(
    ("template", "bare", "silent"),
    [
        (ALWAYS, "<x>A:<think>\n", "<x>A:<think>\n</think>"),
        (MAYBE, "<x>A:", "<x>A:<think></think>"),
        (SWITCHED, "<x>A:", "<x>A:<think></think>"),
    ],
)
def test_a_model_whose_template_has_no_switch_can_be_kept_from_reasoning(
    monkeypatch: pytest.MonkeyPatch, template: str, bare: str, silent: str
) -> None:
    monkeypatch.setattr(harness, "template", lambda: ChatTemplate(template))
    thinks = msgspec.structs.replace(TEXT, reasoning_start="<think>", reasoning_end="</think>")
    asked = [{"role": "user", "content": "x"}]
    with running(says("answer"), thinks) as server:
        for fields in ({}, {"chat_template_kwargs": {"enable_thinking": True}}, {"reasoning": {"effort": "high"}}):
            shown = server.post("/apply-template", {"messages": asked, **fields})
            assert shown[0] == 400 or shown[1]["prompt"] == bare
        for fields in (
            {"chat_template_kwargs": {"enable_thinking": False}},
            {"reasoning_effort": "none"},
            {"thinking": {"type": "disabled"}},
            {"reasoning": {"enabled": False}},
        ):
            assert server.post("/apply-template", {"messages": asked, **fields})[1]["prompt"] == silent, fields
            status, body, _ = server.post(CHAT, {"messages": asked, **fields})
            assert status == 200 and body["choices"][0]["message"] == {"role": "assistant", "content": "answer"}
        for thinking in ({"type": "disabled"}, {"type": "enabled", "budget_tokens": 1024}):
            counted = server.post(f"{MESSAGES}/count_tokens", {"messages": asked, "thinking": thinking})[1]["input_tokens"]
            told = silent if thinking["type"] == "disabled" else bare
            assert counted == len(tokenizer().encode(told, special=False))


def test_tokens_of_reasoning_are_counted() -> None:
    thinks = msgspec.structs.replace(TEXT, reasoning_start="<tool_response>", reasoning_end="</tool_response>")
    inner = tokenizer().encode("let me see", special=False)
    with running(says("<tool_response>let me see</tool_response>well"), thinks) as server:
        usage = server.chat()[1]["usage"]
        assert usage["completion_tokens_details"] == {"reasoning_tokens": len(inner) + 2}  # the marks are tokens too
        usage = server.post("/v1/responses", {"input": "x"})[1]["usage"]
        assert usage["output_tokens_details"] == {"reasoning_tokens": len(inner) + 2}
    with running(says("let me see</tool_response>well"), thinks) as server:  # opened by nobody
        assert server.chat()[1]["usage"]["completion_tokens_details"] == {"reasoning_tokens": len(inner) + 1}
    with running(says("well"), thinks) as server:
        assert server.chat()[1]["usage"]["completion_tokens_details"] == {"reasoning_tokens": 0}


def test_llama_cpp_s_way_of_asking_for_tokens(server: Running) -> None:
    text = "tokens \N{HUGGING FACE}"
    ids = tokenizer().encode(text, special=False)
    status, body, _ = server.post("/tokenize", {"content": text, "with_pieces": True})
    assert status == 200 and [t["id"] for t in body["tokens"]] == ids
    spelled = b"".join(t["piece"].encode() if isinstance(t["piece"], str) else bytes(t["piece"]) for t in body["tokens"])
    assert spelled == text.encode() and any(isinstance(t["piece"], list) for t in body["tokens"])
    assert server.post("/tokenize", {"content": text, "add_special": False})[1]["tokens"] == ids
    assert server.post("/detokenize", {"tokens": ids})[1] == {"prompt": text, "content": text}
    assert server.post("/tokenize", {"prompt": "ab", "return_token_strs": True})[1]["token_strs"] == ["a", "b"]
    assert server.post("/tokenize", {"prompt": "ab", "content": "ab"})[0] == 400


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "video_url", "file"])
def test_what_the_model_cannot_take_is_said(server: Running, kind: str) -> None:
    part = {"type": kind, kind: {"url": "data:x"}, "detail": "low"}
    told = server.chat([{"type": "text", "text": "x"}, part])[1]["error"]  # type: ignore[arg-type]
    assert "input is not supported by this model" in told["message"] and told["param"] == "messages[0].content[1]"
    assert told["code"] == "unsupported_parameter"


def test_images_in_other_dialects(server: Running) -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "eA=="}}
    for content in ([image], [{"type": "tool_result", "tool_use_id": "a", "content": [image]}]):
        status, body, _ = server.post(MESSAGES, {"max_tokens": 9, "messages": [{"role": "user", "content": content}]})
        assert status == 400 and "image input is not supported" in body["error"]["message"]
    seen = {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "http://x"}]}]}
    status, body, _ = server.post("/v1/responses", seen)
    assert status == 400 and "image input is not supported" in body["error"]["message"]


def test_options_of_a_stream_belong_to_one(server: Running) -> None:
    for path, body in ((CHAT, {"messages": BEGUN}), ("/v1/completions", {"prompt": "x"})):
        status, answer, _ = server.post(path, {**body, "stream_options": {"include_usage": True}})
        assert status == 400 and answer["error"]["param"] == "stream_options"


def test_biases_that_are_not_of_tokens_are_named(server: Running) -> None:
    told = server.chat(logit_bias={"bad1": 1, "5": 1, "bad2": 2})[1]["error"]
    assert told["param"] == "logit_bias" and "bad1, bad2" in told["message"]
