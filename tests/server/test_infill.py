"""Filling in: each kind's marks and their order, by completions' suffix and by llama.cpp's route; where there are none, a 400."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest

from ferrum.server.routes.unserved import WANTED
from ferrum.text.fim import SPELLINGS, Spelling, find_infill
from ferrum.text.tokenizer import Tokenizer
from tests.server.fake import FakeBackend
from tests.server.harness import TINY, Running, running, says, sse_events

QWEN, CODESTRAL = SPELLINGS[0], SPELLINGS[-1]


@cache
def tokenizer_with(spelling: Spelling) -> Tokenizer:
    """The built-in tokenizer, some of whose special tokens are the marks of another model."""
    data = json.loads((TINY / "model" / "tokenizer.json").read_text(encoding="utf-8"))
    highest = max([t["id"] for t in data["added_tokens"]] + list(data["model"]["vocab"].values()))
    marks = dict.fromkeys([spelling.prefix, spelling.suffix, spelling.middle, *spelling.ends, spelling.repo, spelling.file])
    there = {t["content"] for t in data["added_tokens"]}
    for number, mark in enumerate((m for m in marks if m and m not in there), highest + 1):
        token = {**data["added_tokens"][0], "id": number, "content": mark, "special": True}
        data["added_tokens"].append(token)
    return Tokenizer(json.dumps(data).encode())


def with_marks(server: Running, spelling: Spelling) -> Tokenizer:
    made = tokenizer_with(spelling)
    server.state.tokenizer = made
    server.state.infill = find_infill(made)
    return made


@pytest.mark.parametrize("spelling", SPELLINGS, ids=lambda s: s.prefix)
def test_marks_and_their_order(spelling: Spelling) -> None:
    made = tokenizer_with(spelling)
    infill = find_infill(made)
    assert infill is not None
    prefix, suffix, middle = (made.token_id(m) for m in (spelling.prefix, spelling.suffix, spelling.middle))
    before, after = made.encode("before", special=False), made.encode("after", special=False)
    expected = [prefix, *before, suffix, *after, middle]
    if spelling.suffix_first:
        expected = [suffix, *after, prefix, *before]
    assert infill.tokens("before", "after") == expected
    assert infill.tokens("", "")[0] == (suffix if spelling.suffix_first else prefix)
    assert set(infill.end_ids) == {made.token_id(e) for e in spelling.ends}


def test_other_files_come_first() -> None:
    infill = find_infill(tokenizer_with(QWEN))
    assert infill is not None
    text = tokenizer_with(QWEN).decode(infill.tokens("a", "b", [("x.py", "X"), ("y.py", "Y")]), skip_special=False)
    assert text == (
        "<|repo_name|>repository\n<|file_sep|>x.py\nX\n<|file_sep|>y.py\nY\n<|file_sep|>filename\n"
        "<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>"
    )
    plain = find_infill(tokenizer_with(CODESTRAL))
    assert plain is not None and plain.tokens("a", "b", [("x", "y")]) == plain.tokens("a", "b")


def wide() -> FakeBackend:
    backend = says("filled in")
    backend.info = __import__("msgspec").structs.replace(backend.info, vocab_size=2000)
    return backend


def complete(server: Running, **fields: Any) -> tuple[int, Any, dict[str, str]]:
    return server.post("/v1/completions", {"model": "tiny", "prompt": "def f(", "suffix": "):", **fields})


def test_suffix_of_completions() -> None:
    with running(wide()) as server:
        made = with_marks(server, QWEN)
        status, body, _ = complete(server, max_tokens=50)
        assert status == 200 and body["choices"][0]["text"] == "filled in"
        prompt, params = server.backend.requests[-1]
        assert made.decode(prompt, skip_special=False) == "<|fim_prefix|>def f(<|fim_suffix|>):<|fim_middle|>"
        assert made.token_id("<|fim_pad|>") in params.stop_token_ids
        assert complete(server, prompt=["a", "b"], n=2, stream=True)[0] == 200
        status, body, _ = complete(server, prompt=[1, 2])
        assert status == 400 and body["error"]["param"] == "suffix"
        assert complete(server, suffix="")[0] == 200
        assert made.token_id("<|fim_pad|>") not in server.backend.requests[-1][1].stop_token_ids


def test_the_route_of_editors() -> None:
    fields = {
        "input_prefix": "def f(",
        "input_suffix": "):",
        "prompt": "x",
        "n_predict": 40,
        "samplers": ["top_k"],
        "n_indent": 4,
    }
    with running(wide()) as server:
        made = with_marks(server, QWEN)
        extra = [{"filename": "a.py", "text": "A"}]
        status, body, _ = server.post("/infill", {**fields, "input_extra": extra, "cache_prompt": True, "t_max_predict_ms": 9})
        assert status == 200 and body["content"] == "filled in" and body["stop"] and body["stop_type"] == "eos"
        prompt = server.backend.requests[-1][0]
        assert made.decode(prompt, skip_special=False).endswith("<|fim_prefix|>def f(x<|fim_suffix|>):<|fim_middle|>")
        assert body["tokens_evaluated"] == len(prompt) and body["tokens_predicted"] > 0
        *pieces, last = sse_events(server.post("/infill", {**fields, "stream": True})[1])
        assert "".join(p["content"] for p in pieces) == "filled in" and last["stop"] and last["content"] == ""
        status, body, _ = server.post("/infill", {**fields, "n_predict": 3})
        assert body["stop_type"] == "limit" and body["tokens_predicted"] == 3
        status, body, _ = server.post("/infill", {**fields, "grammar": "x"})
        assert status == 400 and body["error"]["param"] == "grammar"
        assert server.post("/infill", {"input_prefix": "a"})[0] == 400


def test_what_a_model_cannot_do_is_said() -> None:
    with running(says("x")) as server:
        status, body, _ = complete(server)
        assert status == 400 and body["error"]["param"] == "suffix" and "tokenizer" in body["error"]["message"]
        routes = {"/infill", *WANTED}
        for path in sorted(routes | {p.removeprefix("/v1") for p in routes}):
            status, body, _ = server.post(path, {"model": "tiny", "input": "x", "prompt": "x"})
            message = body["error"] if path.startswith("/api/") else body["error"]["message"]
            assert status == 400 and "this model" in str(message), path
