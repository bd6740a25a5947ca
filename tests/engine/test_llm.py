"""``LLM`` over the null device: texts, stop strings, several users of one engine."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ferrum.devices.null import null_logits
from ferrum.errors import FerrumError
from ferrum.llm import LLM, SamplingParams, Structured, resolve_pack
from tests.engine.null_pack import EOS, VOCAB_SIZE, text_of, tokens, write_null_pack
from tests.engine.oracle import check_empty, expected

PROMPTS = ["hello", "a longer prompt than the first", "x"]


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_null_pack(tmp_path_factory.mktemp("pack") / "null.fpk", generation={"temperature": 0.0, "top_k": 20})


@pytest.fixture(scope="module")
def llm(pack: Path) -> Iterator[LLM]:
    with LLM(pack, "null", trust=True) as model:
        yield model


def oracle(prompt: str, params: SamplingParams, index: int = 0) -> tuple[list[int], str]:
    return expected(tokens(prompt), params, params.max_tokens or 200 - len(prompt), (EOS,), index, VOCAB_SIZE)


def test_texts_and_token_ids_give_the_same(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=30)
    outputs = llm.generate(PROMPTS, params)
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        ids, reason = oracle(prompt, params)
        assert output.token_ids == ids and output.text == text_of(ids) and output.finish_reason == reason
        assert output.prompt_token_ids == tokens(prompt) and output.logprobs is None
    assert [o.token_ids for o in llm.generate([tokens(p) for p in PROMPTS], params)] == [o.token_ids for o in outputs]
    assert llm.generate(np.array(tokens("hello")), params)[0].text == outputs[0].text
    assert llm.generate("hello", params)[0].cached_tokens == 4
    assert llm.generate([], params) == []
    check_empty(llm._model.engine)


def test_each_prompt_may_have_its_own_parameters(llm: LLM) -> None:
    each = [SamplingParams(seed=i, max_tokens=5 + i, n=1 + i, logprobs=i) for i in range(3)]
    for prompt, params, output in zip(PROMPTS, each, llm.generate(PROMPTS, each), strict=True):
        assert len(output.choices) == params.n
        for choice in output.choices:
            assert choice.token_ids == oracle(prompt, params, choice.index)[0]
            assert choice.logprobs is not None and len(choice.logprobs) == len(choice.token_ids)
            assert [p.token for p in choice.logprobs] == choice.token_ids
    with pytest.raises(FerrumError, match="2 parameters for 3 prompts"):
        llm.generate(PROMPTS, each[:2])


def test_the_models_own_defaults_are_used(llm: LLM) -> None:
    assert llm.default_params == SamplingParams(temperature=0.0, top_k=20)
    assert llm.generate("hello")[0].token_ids == oracle("hello", SamplingParams(temperature=0))[0]


def test_the_context_bounds_the_output(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=10_000, min_tokens=300)
    output = llm.generate("hello", params)[0]
    assert len(output.token_ids) == 195 and output.finish_reason == "length" and EOS not in output.token_ids[:-1]
    assert llm.generate("hello", SamplingParams(temperature=0, ignore_eos=True))[0].finish_reason == "length"


def test_a_model_that_does_not_sample_is_greedy(tmp_path: Path) -> None:
    path = write_null_pack(tmp_path / "g.fpk", generation={"do_sample": False, "temperature": 0.7, "max_length": 20})
    with LLM(path, "null", trust=True) as model:
        assert model.default_params == SamplingParams(temperature=0.0)


def test_one_refused_prompt_runs_none(llm: LLM) -> None:
    before = llm.stats().num_iterations
    with pytest.raises(FerrumError, match="201 tokens"):
        llm.generate(["a", "b" * 201])
    assert llm.stats().num_iterations == before
    check_empty(llm._model.engine)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10**6), st.data())
def test_stop_strings_equal_a_brute_force_search(llm: LLM, seed: int, data: st.DataObject) -> None:
    params = SamplingParams(seed=seed, max_tokens=40)
    ids, reason = oracle("stop", params)
    text = text_of(ids)
    stops = []
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        stops.append(text[start : start + data.draw(st.integers(1, 4))] or "~~~~")
    ends = [text.index(s) + len(s) for s in stops if s in text]
    if ends:
        longest = max(len(s) for s in stops if s in text and text.index(s) + len(s) == min(ends))
        text, ids, reason = text[: min(ends) - longest], ids[: min(ends)], "stop"
    params = SamplingParams(seed=seed, max_tokens=40, stop=stops)
    generated = llm.stats().num_tokens_generated
    (output,) = llm.generate("stop", params)
    assert (output.text, output.token_ids, output.finish_reason) == (text, ids, reason)
    assert llm.stats().num_tokens_generated - generated == len(ids), "no token after the stop string is computed"
    pieces = list(llm.stream("stop", params))
    assert "".join(map(str, pieces)) == text and [p.finish_reason for p in pieces if p.finish_reason] == [reason]
    check_empty(llm._model.engine)


def test_leaving_a_stream_ends_its_request(llm: LLM) -> None:
    llm.stream("hello")
    for piece in llm.stream("hello", SamplingParams(max_tokens=100)):
        assert len(piece.token_ids) == 1
        break
    check_empty(llm._model.engine)


def test_a_generate_inside_a_stream_disturbs_neither(llm: LLM) -> None:
    params = SamplingParams(seed=8, max_tokens=30, ignore_eos=True)
    text = ""
    for piece in llm.stream("hello", params):
        text += piece.text
        if len(text) == 3:
            assert llm.generate("x", params)[0].token_ids == oracle("x", params)[0]
    assert text == text_of(oracle("hello", params)[0])


def test_threads_share_the_engine(llm: LLM) -> None:
    params = SamplingParams(seed=8, max_tokens=60, ignore_eos=True)
    with ThreadPoolExecutor(4) as pool:
        outputs = list(pool.map(lambda p: llm.generate(p, params)[0].token_ids, PROMPTS * 4))
    assert outputs == [oracle(p, params)[0] for p in PROMPTS] * 4
    check_empty(llm._model.engine)


def test_logits(llm: LLM) -> None:
    rows = llm.logits(tokens("logits"))
    assert rows.shape == (6, VOCAB_SIZE) and rows.dtype == np.float32
    np.testing.assert_array_equal(rows[-1], null_logits(tokens("logits"), VOCAB_SIZE))


def test_chat_applies_the_template(llm: LLM) -> None:
    pytest.importorskip("ferrum.text.chat_template")
    messages = [{"role": "user", "content": "hi"}]
    assert llm.chat_prompt(messages) == tokens("<user>hi<assistant>")
    assert llm.chat(messages).token_ids == oracle("<user>hi<assistant>", SamplingParams(temperature=0))[0]


def test_options_and_closing(pack: Path) -> None:
    llm = LLM(pack, "null", trust=True, max_num_seqs=2, max_num_batched_tokens=7, max_model_len=50, prefix_cache=False)
    info = llm.info
    assert (info.max_num_seqs, info.max_num_batched_tokens, info.max_model_len) == (2, 7, 50) and not info.prefix_cache
    params = SamplingParams(temperature=0, max_tokens=10)
    assert [o.token_ids for o in llm.generate(PROMPTS, params)] == [oracle(p, params)[0] for p in PROMPTS]
    stream = llm.stream("hello")
    next(stream)
    llm.close()
    llm.close()
    with pytest.raises(FerrumError, match="closed"):
        next(stream)
    with pytest.raises(FerrumError, match="closed"):
        llm.generate("x")
    with pytest.raises(TypeError):
        LLM(pack, "null", max_sequences=3)  # type: ignore[call-arg]


def test_a_packs_path_is_taken_as_it_is(tmp_path: Path) -> None:
    assert resolve_pack(tmp_path / "x.fpk") == tmp_path / "x.fpk"
    with pytest.raises(FerrumError, match="y.fpk"):
        LLM(tmp_path / "y.fpk")


def test_without_a_tokenizer_there_are_only_token_ids(tmp_path: Path) -> None:
    path = write_null_pack(tmp_path / "n.fpk", tokenizer=False)
    with LLM(path, "null", trust=True) as model:
        output = model.generate([tokens("hello")], SamplingParams(temperature=0, max_tokens=9))[0]
        assert output.token_ids == oracle("hello", SamplingParams(temperature=0, max_tokens=9))[0] and output.text == ""
        with pytest.raises(FerrumError, match="no tokenizer"):
            model.generate("hello")
        with pytest.raises(FerrumError, match="no tokenizer"):
            model.generate([tokens("hello")], SamplingParams(stop="x"))
        check_empty(model._model.engine)


def test_structured_answers(llm: LLM) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer", "maximum": 99}},
        "required": ["a"],
        "additionalProperties": False,
    }
    wishes = [
        Structured(json=schema),
        Structured(json=schema, compact=True),
        Structured(choice=("red", "green")),
        Structured(regex="[0-9]{4}"),
    ]
    each = [SamplingParams(structured=wish, seed=i, temperature=1, max_tokens=100) for i, wish in enumerate(wishes)]
    found = llm.generate(["one", tokens("two"), "three", "four"], each)
    assert all(set(json.loads(output.text)) == {"a"} and output.finish_reason == "stop" for output in found[:2])
    assert " " not in found[1].text and found[2].text in ("red", "green") and re.fullmatch("[0-9]{4}", found[3].text)
    assert "".join(piece.text for piece in llm.stream("three", each[2])) == found[2].text
    with pytest.raises(FerrumError, match="keyword not") as caught:
        llm.generate("x", SamplingParams(structured=Structured(json={"not": {}})))
    assert caught.value.where == "structured"
    with pytest.raises(FerrumError, match="give one of"):
        Structured(regex="a", choice=("b",))
    with pytest.raises(FerrumError, match="could not be followed|refused"):
        llm.generate("x", SamplingParams(grammar="no grammar"))
    check_empty(llm._model.engine)


def test_without_the_package_an_error_says_so(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FerrumError, match="need the package llguidance"):
        llm.generate("x", SamplingParams(structured=Structured(choice=("never asked before",))))
