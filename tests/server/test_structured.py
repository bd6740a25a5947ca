"""Structured answers and forced calls over HTTP, in the words of every client that asks for them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import anthropic
import jsonschema
import openai
import pydantic
import pytest

from ferrum.engine.params import SamplingParams
from tests.server.fake import FakeBackend
from tests.server.harness import Running, running
from tests.structured.random_model import RandomModel

USER: Any = [{"role": "user", "content": "hi"}]
PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer"},
        "pets": {"enum": ["cat", "dog", None]},
    },
    "required": ["name", "age", "pets"],
    "additionalProperties": False,
    "title": "Person",
    "$defs": {},
}
FUNCTION = {"name": "Person", "description": "A person", "parameters": PERSON}
TOOL = {"type": "function", "function": FUNCTION}
STRICT = {"type": "function", "function": {**FUNCTION, "strict": True}}
OTHER = {"type": "function", "function": {"name": "other", "parameters": {"type": "object", "properties": {}}, "strict": True}}
NAMED = {"type": "function", "function": {"name": "Person"}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "Person", "schema": PERSON, "strict": True}}


@pytest.fixture(scope="module")
def model() -> Iterator[RandomModel]:
    made = RandomModel()
    yield made
    made.close()


@pytest.fixture(scope="module")
def server(model: RandomModel) -> Iterator[Running]:
    """An engine that follows the grammar it is given, and says "hello" without one."""

    def reply(prompt: Sequence[int], params: SamplingParams, index: int) -> list[int]:
        if not params.grammar:
            return model.vocab.encode("hello", special=False)
        tokens, ended = model.tokens(params.grammar, index, most=1500, skip=params.logprobs is None)
        assert ended
        return tokens

    with running(FakeBackend(reply)) as made:
        yield made


def content(answer: Any) -> Any:
    return json.loads(answer["choices"][0]["message"]["content"])


CONTENT: dict[str, dict[str, Any]] = {
    "openai": {"response_format": SCHEMA},
    "openai, not strict": {
        "response_format": {"type": "json_schema", "json_schema": {"name": "P", "schema": PERSON, "strict": False}}
    },
    "instructor, JSON_SCHEMA": {"response_format": {"type": "json_object", "schema": PERSON}},
    "langchain, json_schema": {"response_format": SCHEMA, "parallel_tool_calls": None, "n": 1, "stream": False},
    "vllm": {"structured_outputs": {"json": PERSON, "disable_any_whitespace": True, "_backend": "auto"}},
    "vllm, as text": {"structured_outputs": {"json": json.dumps(PERSON)}},
    "vllm, before": {"guided_json": PERSON, "guided_decoding_backend": "outlines"},
    "llama.cpp": {"json_schema": PERSON, "cache_prompt": True},
}


@pytest.mark.parametrize("client", sorted(CONTENT))
def test_content_keeps_to_a_schema(server: Running, client: str) -> None:
    status, answer, _ = server.chat(**CONTENT[client])
    assert status == 200, answer
    jsonschema.validate(content(answer), PERSON)
    assert answer["choices"][0]["finish_reason"] == "stop"


OTHER_FORMS: dict[str, tuple[dict[str, Any], str]] = {
    "regex": ({"structured_outputs": {"regex": "[0-9]{3}-[a-c]"}}, "[0-9]{3}-[a-c]"),
    "guided_regex": ({"guided_regex": "(ab)+"}, "(ab)+"),
    "sglang": ({"regex": "x{3}"}, "xxx"),
    "choice": ({"structured_outputs": {"choice": ["red", "green"]}}, "red|green"),
    "guided_choice": ({"guided_choice": ["a b", "c"]}, "a b|c"),
    "lark": ({"guided_grammar": 'start: "a" NUMBER\nNUMBER: /[0-9]{2}/'}, "a[0-9]{2}"),
    "gbnf": ({"grammar": 'root ::= "x" [0-9] ("," [0-9]){2}'}, "x[0-9],[0-9],[0-9]"),
    "ebnf": ({"ebnf": 'root ::= "yes" | "no"'}, "yes|no"),
    "tags": (
        {
            "response_format": {
                "type": "structural_tag",
                "structures": [{"begin": "<n>", "schema": {"type": "integer"}, "end": "</n>"}],
                "triggers": ["<n"],
            }
        },
        r"(?s).*",
    ),
}


@pytest.mark.parametrize("name", sorted(OTHER_FORMS))
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_other_forms(server: Running, name: str, path: str) -> None:
    import re

    fields, pattern = OTHER_FORMS[name]
    asked = {"messages": USER} if "chat" in path else {"prompt": "hi", "max_tokens": 2000}
    status, answer, _ = server.post(path, {**asked, **fields, "n": 2})
    assert status == 200, answer
    for choice in answer["choices"]:
        assert re.fullmatch(pattern, choice["message"]["content"] if "chat" in path else choice["text"])


def test_any_object(server: Running) -> None:
    """As instructor's JSON mode and langchain's json_mode ask for it; n choices, each its own."""
    _, answer, _ = server.chat(response_format={"type": "json_object"}, n=3)
    assert all(isinstance(json.loads(c["message"]["content"]), dict) for c in answer["choices"])
    _, answer, _ = server.post("/v1/completions", {"prompt": "x", "response_format": SCHEMA, "max_tokens": 2000})
    jsonschema.validate(json.loads(answer["choices"][0]["text"]), PERSON)


CALLS: dict[str, dict[str, Any]] = {
    "instructor, TOOLS": {"tools": [TOOL], "tool_choice": NAMED},
    "instructor, TOOLS_STRICT": {"tools": [STRICT], "tool_choice": NAMED},
    "langchain, function_calling": {"tools": [TOOL, OTHER], "tool_choice": NAMED, "parallel_tool_calls": False},
    "langchain, any": {"tools": [STRICT], "tool_choice": "required"},
    "pydantic-ai, output tool": {"tools": [STRICT], "tool_choice": "required", "stream": False},
    "named as the Responses API does": {"tools": [TOOL], "tool_choice": {"type": "function", "name": "Person"}},
}


@pytest.mark.parametrize("client", sorted(CALLS))
def test_forced_calls_are_calls(server: Running, client: str) -> None:
    status, answer, _ = server.chat(**CALLS[client])
    assert status == 200, answer
    message = answer["choices"][0]["message"]
    assert message["content"] is None and answer["choices"][0]["finish_reason"] == "tool_calls"
    for call in message["tool_calls"]:
        assert call["function"]["name"] == "Person"
        jsonschema.validate(json.loads(call["function"]["arguments"]), PERSON)
    if "named" in client or client.startswith("instructor"):
        assert len(message["tool_calls"]) == 1


def test_required_takes_any_function_and_streams(server: Running) -> None:
    body = {"model": "tiny", "messages": USER, "tools": [STRICT, OTHER], "tool_choice": "required", "n": 4}
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        whole = client.chat.completions.create(**body)
        names: dict[int, list[str]] = {}
        for chunk in client.chat.completions.create(**body, stream=True):
            for choice in chunk.choices:
                for call in choice.delta.tool_calls or []:
                    names.setdefault(choice.index, []).extend([call.function.name] if call.function.name else [])
    assert [[c.function.name for c in choice.message.tool_calls] for choice in whole.choices] == [names[i] for i in range(4)]


def test_strict_functions_under_auto(server: Running) -> None:
    """pydantic-ai sends its tools so; what is not strict has no grammar."""
    server.backend.requests.clear()
    assert server.chat(tools=[STRICT, OTHER], tool_choice="auto")[0] == 200
    assert server.chat(tools=[TOOL], tool_choice="auto")[1]["choices"][0]["message"]["content"] == "hello"
    assert server.chat(tools=[STRICT], tool_choice="none")[1]["choices"][0]["message"]["content"] == "hello"
    assert [bool(params.grammar) for _, params in server.backend.requests] == [True, False, False]
    server.chat(tools=[STRICT], tool_choice="auto")
    prompts = [prompt for prompt, _ in server.backend.requests]
    assert prompts[3] == prompts[1]  # the model is not told


class Pet(pydantic.BaseModel):
    kind: str = pydantic.Field(max_length=9)
    legs: int | None
    friends: list[str] = pydantic.Field(max_length=2)


def test_openai_parses_into_a_class(server: Running) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        chat = client.chat.completions.parse(model="tiny", messages=USER, response_format=Pet)
        assert isinstance(chat.choices[0].message.parsed, Pet)
        response = client.responses.parse(model="tiny", input="hi", text_format=Pet)
        assert isinstance(response.output_parsed, Pet)
        tool: Any = openai.pydantic_function_tool(Pet)
        called = client.chat.completions.parse(model="tiny", messages=USER, tools=[tool], tool_choice="required")
        assert isinstance(called.choices[0].message.tool_calls[0].function.parsed_arguments, Pet)


def test_responses(server: Running) -> None:
    flat = {"type": "function", "name": "Person", "parameters": PERSON, "strict": True}
    form = {"type": "json_schema", "name": "response", "schema": PERSON, "strict": True}
    status, answer, _ = server.post("/v1/responses", {"input": "hi", "text": {"format": form}})
    assert status == 200 and answer["text"]["format"] == form
    jsonschema.validate(json.loads(answer["output"][0]["content"][0]["text"]), PERSON)
    for choice in ("required", {"type": "function", "name": "Person"}):
        status, answer, _ = server.post("/v1/responses", {"input": "hi", "tools": [flat], "tool_choice": choice})
        assert status == 200 and answer["output"][0]["type"] == "function_call"
        jsonschema.validate(json.loads(answer["output"][0]["arguments"]), PERSON)


def test_messages(server: Running) -> None:
    tools: Any = [{"name": "Person", "input_schema": PERSON}]
    with anthropic.Anthropic(base_url=server.url, api_key="none") as client:
        for choice in ({"type": "any"}, {"type": "tool", "name": "Person"}):
            made = client.messages.create(model="tiny", max_tokens=2000, messages=USER, tools=tools, tool_choice=choice)  # type: ignore[call-overload]
            assert made.stop_reason == "tool_use"
            jsonschema.validate(made.content[0].input, PERSON)
    form = {"type": "json_schema", "schema": PERSON}
    for fields in ({"output_format": form}, {"output_config": {"format": form}}):
        status, answer, _ = server.post("/v1/messages", {"model": "tiny", "max_tokens": 2000, "messages": USER, **fields})
        assert status == 200, answer
        jsonschema.validate(json.loads(answer["content"][0]["text"]), PERSON)


def test_ollama(server: Running) -> None:
    for path, asked in (
        ("/api/chat", {"messages": USER}),
        ("/api/generate", {"prompt": "x"}),
        ("/api/generate", {"prompt": "x", "raw": True}),
    ):
        status, answer, _ = server.post(path, {"model": "tiny", "stream": False, "format": PERSON, **asked})
        assert status == 200, answer
        jsonschema.validate(json.loads(answer["message"]["content"] if "chat" in path else answer["response"]), PERSON)
        _, answer, _ = server.post(path, {"model": "tiny", "stream": False, "format": "json", **asked})
        assert isinstance(json.loads(answer["message"]["content"] if "chat" in path else answer["response"]), dict)


def json_schema(schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}}}


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    (json_schema({"if": {}, "then": {}}), "response_format.json_schema", "keyword if, then"),
    (json_schema({"type": "array", "uniqueItems": True}), "response_format.json_schema", "uniqueItems"),
    (json_schema({"type": "object", "minProperties": 3}), "response_format.json_schema", "minProperties"),
    (json_schema({"properties": {"a": {"contains": {}}}}), "response_format.json_schema", "contains"),
    (json_schema({"x-guidance": {"lenient": True}, "not": {}}), "response_format.json_schema", "x-guidance"),
    (json_schema({"$ref": "https://example.com/x"}), "response_format.json_schema", "refused"),
    (json_schema(False), "response_format.json_schema", "allows nothing"),
    (json_schema({"type": "string", "minLength": 5, "maxLength": 2}), "response_format.json_schema", "minLength"),
    (json_schema("a"), "response_format.json_schema", "not JSON"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "missing"),
    ({"response_format": {"type": "yaml"}}, "response_format", "type"),
    ({"response_format": {"type": "structural_tag"}}, "response_format.structural_tag", "structures"),
    ({"structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs", "one of"),
    ({"structured_outputs": {"choice": 5}}, "structured_outputs", "must be a list"),
    ({"structured_outputs": {"choice": "abc"}}, "structured_outputs", "must be a list"),
    ({"structured_outputs": {"choice": ["a", 1]}}, "structured_outputs", "texts"),
    ({"structured_outputs": {"json_object": "yes"}}, "structured_outputs", "true or false"),
    ({"structured_outputs": {"regex": 5}}, "structured_outputs", "regex"),
    ({"structured_outputs": {"json": 5}}, "structured_outputs", "schema"),
    ({"structured_outputs": [1]}, "structured_outputs", "object"),
    ({"response_format": [{}]}, "response_format", "type"),
    ({**json_schema({"not": {}}), "tools": [TOOL]}, "response_format.json_schema", "keyword not"),
    ({"structured_outputs": {"whitespace_pattern": " "}}, "structured_outputs", "whitespace_pattern"),
    ({"guided_regex": "a", "guided_choice": ["b"]}, "guided_choice", "together"),
    ({"guided_regex": "(a"}, "guided_regex", "regex"),
    ({"guided_regex": "(?=a)b"}, "guided_regex", "look-around"),
    ({"grammar": "root ::= nothing"}, "grammar", "nothing"),
    (
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"not": {}}, "strict": True}}]},
        "tools",
        "keyword not",
    ),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "nobody"}}}, "tool_choice", "nobody"),
    ({"tool_choice": "required"}, "tool_choice", "declares none"),
    ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools"}}, "tool_choice", "must be"),
]


@pytest.mark.parametrize(("fields", "param", "named"), REFUSED)
def test_what_cannot_be_kept_to_is_refused_by_name(server: Running, fields: dict[str, Any], param: str, named: str) -> None:
    status, answer, _ = server.chat(**fields)
    assert status == 400 and answer["error"]["param"] == param and named in answer["error"]["message"], answer


def test_log_probabilities_come_with_every_token(server: Running) -> None:
    _, answer, _ = server.chat(response_format=SCHEMA, logprobs=True)
    choice = answer["choices"][0]
    assert "".join(t["token"] for t in choice["logprobs"]["content"]) == choice["message"]["content"]


def test_a_stop_string_ends_a_structured_answer(server: Running) -> None:
    _, answer, _ = server.chat(response_format=SCHEMA, stop='"age"')
    assert '"name"' in answer["choices"][0]["message"]["content"] and '"age"' not in answer["choices"][0]["message"]["content"]
