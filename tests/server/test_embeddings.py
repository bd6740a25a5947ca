"""``/v1/embeddings`` and Ollama's routes: what is taken, what comes back, what is refused and how."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
import openai
import pytest

from ferrum.errors import FerrumError
from ferrum.pack.prompts import Prompts
from tests.server.fake import FakeBackend
from tests.server.harness import Running, running, says, tokenizer

WIDTH, LONGEST = 6, 40


class FakeEncoder(FakeBackend):
    """The row of a prompt says which tokens it had: their sum, their number, and the first."""

    def __init__(self) -> None:
        super().__init__(lambda prompt, params, index: [])
        self.info = msgspec.structs.replace(self.info, embedding_width=WIDTH, max_model_len=LONGEST, max_num_seqs=3)
        self.seen: list[list[int]] = []
        self.together = self.most = 0
        self.refuses = ""

    async def embed(self, prompt: Sequence[int], dimensions: int = 0) -> bytes:
        self.together += 1
        self.most = max(self.most, self.together)
        try:
            await asyncio.sleep(0.001)
            self.seen.append(list(prompt))
            if self.refuses or dimensions > WIDTH:
                code, where = (self.refuses, "prompt") if self.refuses else ("invalid-parameter", "dimensions")
                raise FerrumError(code, f"the model's embeddings have {WIDTH} numbers, not {dimensions}", where)
            return row_of(prompt)[: dimensions or WIDTH].tobytes()
        finally:
            self.together -= 1


def row_of(prompt: Sequence[int]) -> np.ndarray:
    return np.array([sum(prompt), len(prompt), prompt[0], 0.1, -2.5, 1 / 3], "<f4")


@pytest.fixture
def server() -> Iterator[Running]:
    with running(FakeEncoder()) as made:
        made.state.prompts = Prompts(prompts={"query": "ask: ", "plain": ""}, default="")
        yield made


def body(given: Any, **fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "input": given, **fields}


def rows(answer: Any) -> list[list[float]]:
    assert [d["index"] for d in answer["data"]] == list(range(len(answer["data"])))
    assert {d["object"] for d in answer["data"]} == {"embedding"}
    return [d["embedding"] for d in answer["data"]]


def text_ids(text: str) -> list[int]:
    return tokenizer().encode(text)


@pytest.mark.parametrize(
    ("given", "prompts"),
    [
        ("hello", [text_ids("hello")]),
        (["hello", "a b"], [text_ids("hello"), text_ids("a b")]),
        ([5, 6, 7], [[5, 6, 7]]),
        ([[5, 6, 7], [8]], [[5, 6, 7], [8]]),
    ],
)
def test_every_form_of_input(server: Running, given: Any, prompts: list[list[int]]) -> None:
    status, answer, _ = server.post("/v1/embeddings", body(given))
    assert status == 200 and (answer["object"], answer["model"]) == ("list", "tiny")
    np.testing.assert_array_equal(np.array(rows(answer), np.float32), [row_of(prompt) for prompt in prompts])
    count = sum(map(len, prompts))
    assert answer["usage"] == {"prompt_tokens": count, "total_tokens": count}


def test_base64_holds_the_same_numbers(server: Running) -> None:
    _, answer, _ = server.post("/v1/embeddings", body([[5, 6], [7]], encoding_format="base64", dimensions=2, user="me"))
    found = [np.frombuffer(base64.b64decode(row), "<f4") for row in rows(answer)]  # type: ignore[arg-type]
    np.testing.assert_array_equal(found, [row_of([5, 6])[:2], row_of([7])[:2]])


def test_a_prompt_of_the_model_goes_before_texts_only(server: Running) -> None:
    for name, before in (("query", "ask: "), ("plain", "")):
        _, answer, _ = server.post("/v1/embeddings", body("hello", prompt_name=name))
        np.testing.assert_array_equal(np.array(rows(answer), np.float32)[0], row_of(text_ids(before + "hello")))
    _, answer, _ = server.post("/v1/embeddings", body([5, 6], prompt_name="query"))
    np.testing.assert_array_equal(np.array(rows(answer), np.float32)[0], row_of([5, 6]))


def test_openais_client_takes_it(server: Running) -> None:
    """It asks for base64 by itself."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        found = client.embeddings.create(model="tiny", input=["hello", "a b"])
        assert found.usage.prompt_tokens == len(text_ids("hello")) + len(text_ids("a b"))
        wanted = [row_of(text_ids(text)) for text in ("hello", "a b")]
        np.testing.assert_array_equal(np.array([one.embedding for one in found.data], np.float32), wanted)
        with pytest.raises(openai.BadRequestError, match="have 6 numbers, not 7"):
            client.embeddings.create(model="tiny", input="hello", dimensions=WIDTH + 1)


LONG = list(range(3, LONGEST + 4))
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    (body([]), "input", "invalid_value"),
    (body(["a", [3]]), "input", "invalid_value"),
    (body([3, "a"]), "input", "invalid_value"),
    (body(3), "input", "invalid_value"),
    (body([[]]), "input", "invalid_value"),
    (body([[3], LONG]), "input", "context_length_exceeded"),
    (body("a", encoding_format="hex"), "encoding_format", "invalid_value"),
    (body("a", dimensions=0), "dimensions", "invalid_value"),
    (body("a", dimensions=WIDTH + 1), "dimensions", "invalid_value"),
    (body("a", prompt_name="no"), "prompt_name", "invalid_value"),
    (body("a", temperature=1), "temperature", "unknown_parameter"),
    ({"model": "tiny"}, "input", "missing_required_parameter"),
]


@pytest.mark.parametrize(("asked", "param", "code"), REFUSED)
def test_what_is_refused_is_named(server: Running, asked: dict[str, Any], param: str, code: str) -> None:
    status, answer, _ = server.post("/v1/embeddings", asked)
    assert status == 400 and answer["error"]["type"] == "invalid_request_error"
    assert (answer["error"]["param"], answer["error"]["code"]) == (param, code)


def test_other_models_and_many_texts(server: Running) -> None:
    assert server.post("/v1/embeddings", body("a") | {"model": "other"})[0] == 404
    status, answer, _ = server.post("/v1/embeddings", body(["a"] * 2049))
    assert status == 400 and "2048" in answer["error"]["message"]
    status, answer, _ = server.post("/embeddings", body([[3 + n] for n in range(50)]))
    assert status == 200 and [row[0] for row in rows(answer)] == [3 + n for n in range(50)]
    assert server.backend.most == 3  # type: ignore[attr-defined]


def test_refusals_of_the_engine(server: Running) -> None:
    for code, status in (("invalid-token", 400), ("queue-full", 429), ("engine-draining", 503)):
        server.backend.refuses = code  # type: ignore[attr-defined]
        found, answer, headers = server.post("/v1/embeddings", body([[3], [4], [5], [6]]))
        assert found == status and (status == 400) == (answer["error"]["param"] == "input")
        assert status == 400 or "retry-after" in headers


def test_ollamas_routes(server: Running) -> None:
    status, answer, _ = server.post("/api/embed", {"model": "tiny:latest", "input": ["hello", "a b"], "dimensions": 3})
    assert status == 200 and answer["model"] == "tiny:latest"
    wanted = [row_of(text_ids(text))[:3] for text in ("hello", "a b")]
    np.testing.assert_array_equal(np.array(answer["embeddings"], np.float32), wanted)
    assert answer["prompt_eval_count"] == len(text_ids("hello")) + len(text_ids("a b")) and answer["total_duration"] > 0
    status, answer, _ = server.post("/api/embeddings", {"model": "tiny", "prompt": "hello"})
    np.testing.assert_array_equal(np.array(answer["embedding"], np.float32), row_of(text_ids("hello")))
    long = " ".join(["word"] * 60)
    status, answer, _ = server.post("/api/embed", {"model": "tiny", "input": long})
    assert status == 200 and answer["prompt_eval_count"] == LONGEST
    status, answer, _ = server.post("/api/embed", {"model": "tiny", "input": long, "truncate": False})
    assert status == 400 and "up to 40" in answer["error"]
    _, answer, _ = server.post("/api/show", {"model": "tiny"})
    assert answer["capabilities"] == ["embedding"]


def test_a_model_that_embeds_generates_nothing(server: Running) -> None:
    messages = [{"role": "user", "content": "hi"}]
    for path, asked in (
        ("/v1/chat/completions", {"messages": messages}),
        ("/v1/completions", {"prompt": "hi"}),
        ("/v1/responses", {"input": "hi"}),
        ("/v1/messages", {"messages": messages, "max_tokens": 3}),
        ("/api/chat", {"messages": messages}),
        ("/v1/rerank", {}),
    ):
        status, answer, _ = server.post(path, {"model": "tiny", **asked})
        message = answer["error"] if isinstance(answer["error"], str) else answer["error"]["message"]
        assert status == 400 and "this model makes embeddings" in message, path


def test_a_model_that_generates_embeds_nothing() -> None:
    with running(says("hello")) as server:
        for path, asked in (("/v1/embeddings", body("a")), ("/api/embed", body("a")), ("/api/embeddings", {"prompt": "a"})):
            status, answer, _ = server.post(path, asked)
            assert status == 400 and "makes no embeddings" in str(answer["error"])
