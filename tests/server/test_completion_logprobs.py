"""Log-probabilities of text completions: the sampled token is always among them, and no two tokens share a name."""

from __future__ import annotations

from typing import Any

from ferrum.engine.reports import TokenEvent
from ferrum.server.choice import ScoredToken
from ferrum.server.routes.completions import alternatives, spelled
from tests.server.fake import FakeBackend, FakeGeneration
from tests.server.harness import running, says, tokenizer

TEXTS = "/v1/completions"


def scores(logprobs: int, text: str = "ab", backend: FakeBackend | None = None) -> Any:
    with running(backend or says(text)) as server:
        status, answer, _ = server.post(TEXTS, {"prompt": "x", "logprobs": logprobs})
        assert status == 200, answer
        raw = server.post(TEXTS, {"prompt": "x", "logprobs": logprobs, "stream": True})[1]
        assert raw.count('"top_logprobs":[{') == len(answer["choices"][0]["logprobs"]["tokens"])
    return answer["choices"][0]["logprobs"]


def test_the_sampled_token_is_there_whatever_was_asked_for() -> None:
    for count in (0, 1, 5):
        found = scores(count)
        assert "".join(found["tokens"]) == "ab"
        for token, logprob, top in zip(found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True):
            assert top[token] == logprob == -0.5 and len(top) == max(count, 1)
            assert list(top.values()) == sorted(top.values(), reverse=True)


def test_a_sampled_token_among_the_likeliest_is_not_there_twice() -> None:
    score = ScoredToken(7, -1.0, ((3, -0.5), (7, -1.0)), 0)
    assert alternatives(score) == [(3, -0.5), (7, -1.0)]
    assert alternatives(ScoredToken(9, -4.0, ((3, -0.5), (7, -1.0)), 0)) == [(3, -0.5), (7, -1.0), (9, -4.0)]


def test_tokens_with_one_text_have_names_of_their_own() -> None:
    assert spelled(b"\xe2\x82") == "bytes:\\xe2\\x82" and spelled("é".encode()) == "é"
    broken = [
        i for i in range(761) if b"\xef\xbf\xbd" not in tokenizer().token_bytes(i) and "\ufffd" in tokenizer().token_text(i)
    ]
    assert len(broken) > 20
    backend = says("ab")
    make = backend.generate

    def generate(prompt: Any, params: Any, *, salt: str = "") -> FakeGeneration:
        generation = make(prompt, params, salt=salt)
        take = generation.batch

        async def batch() -> list[TokenEvent]:
            events = await take()
            top = tuple((t, -2.0 - i) for i, t in enumerate([*broken[:19], 768 + 5]))  # an unknown id has no text at all
            return [TokenEvent(e.request_id, e.index, e.token, e.finish_reason, e.logprob, top) for e in events]

        generation.batch = batch  # type: ignore[method-assign]
        return generation

    backend.generate = generate  # type: ignore[method-assign]
    for top in scores(20, backend=backend)["top_logprobs"]:
        assert len(top) == 21 and not any("\ufffd" in name for name in top)
