"""The built-in model behind the server: compiled code, engine process, HTTP and the `openai` package together."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anthropic
import pytest

from tests.server.test_lifecycle import Served, served

TOOLS: Any = [
    {
        "type": "function",
        "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
    }
]


@pytest.fixture(scope="module")
def server(tiny_pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("tiny")
    with served(tiny_pack, folder, device="auto", trust=False, max_num_seqs=8, num_threads=1, served_model_name="tiny") as made:
        yield made


def ask(server: Served, text: str, **fields: Any) -> Any:
    messages = [{"role": "user", "content": text}]
    return server.client().chat.completions.create(model="tiny", messages=messages, **{"temperature": 0, **fields})


def test_it_computes(server: Served) -> None:
    done = ask(server, "What is 12+30?")
    assert "42" in done.choices[0].message.content and done.choices[0].finish_reason == "stop"
    parts = [c.choices[0].delta.content or "" for c in ask(server, "What is 12+30?", stream=True)]
    assert "".join(parts) == done.choices[0].message.content


def test_it_calls_tools(server: Served) -> None:
    question = "What is the weather in Rome?"
    choice = ask(server, question, tools=TOOLS).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert [(c.function.name, json.loads(c.function.arguments)) for c in choice.message.tool_calls] == [
        ("get_weather", {"city": "Rome"})
    ]
    deltas = [d for c in ask(server, question, tools=TOOLS, stream=True) for d in c.choices[0].delta.tool_calls or []]
    assert deltas[0].function.name == "get_weather" and len(deltas) > 2
    assert json.loads("".join(d.function.arguments or "" for d in deltas)) == {"city": "Rome"}


def test_it_keeps_to_forms(server: Served) -> None:
    """A schema, a required call where it would rather talk, in company of answers without a form."""
    properties = {"answer": {"type": "integer"}, "sure": {"type": "boolean"}}
    schema = {"type": "object", "properties": properties, "required": ["answer", "sure"], "additionalProperties": False}
    form: Any = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}}
    with ThreadPoolExecutor(4) as pool:
        free = pool.submit(ask, server, "What is 12+30?", max_tokens=40)
        bound = pool.submit(ask, server, "What is 12+30?", response_format=form, max_tokens=60)
        called = pool.submit(ask, server, "What is 1+2?", tools=TOOLS, tool_choice="required", max_tokens=80)
        picked = pool.submit(ask, server, "Red or green?", extra_body={"guided_choice": ["red", "green"]})
    assert "42" in free.result().choices[0].message.content
    found = json.loads(bound.result().choices[0].message.content)
    assert isinstance(found["answer"], int) and isinstance(found["sure"], bool)
    calls = called.result().choices[0].message.tool_calls
    assert calls and all(c.function.name == "get_weather" and json.loads(c.function.arguments) is not None for c in calls)
    assert picked.result().choices[0].message.content in ("red", "green")


def test_answers_do_not_depend_on_company(server: Served) -> None:
    questions = [f"What is {a}+{b}?" for a, b in ((1, 2), (12, 30), (7, 8), (44, 5), (20, 20), (9, 9), (31, 4), (2, 60))]
    alone = [ask(server, q, logprobs=True).choices[0] for q in questions]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda q: ask(server, q, logprobs=True).choices[0], questions))
    assert [c.message.content for c in alone] == [c.message.content for c in together]
    for choice in alone:
        assert "".join(t.token for t in choice.logprobs.content) == choice.message.content


def test_seeds_repeat(server: Served) -> None:
    create = server.client().completions.create
    fields: dict[str, Any] = {"prompt": "The", "temperature": 2, "top_p": 1, "n": 4, "max_tokens": 12}
    first, again, other = ([c.text for c in create(model="tiny", seed=seed, **fields).choices] for seed in (3, 3, 4))
    assert first == again != other and len(set(first)) > 1


def test_stop_and_length(server: Served) -> None:
    whole = ask(server, "What is 12+30?").choices[0].message.content
    cut = ask(server, "What is 12+30?", stop=["2"]).choices[0]
    assert cut.message.content == whole.partition("2")[0] and cut.finish_reason == "stop"
    short = ask(server, "What is 12+30?", max_tokens=1)
    assert short.choices[0].finish_reason == "length" and short.usage.completion_tokens == 1


def test_every_dialect_says_the_same(server: Served) -> None:
    question = "What is 12+30?"
    said = ask(server, question).choices[0].message.content
    base = f"http://127.0.0.1:{server.port}"
    response = server.client().responses.create(model="tiny", input=question, temperature=0)
    claude = anthropic.Anthropic(base_url=base, api_key="unused", max_retries=0, timeout=60)
    messages: Any = [{"role": "user", "content": question}]
    message: Any = claude.messages.create(model="tiny", max_tokens=50, messages=messages, extra_body={"temperature": 0})
    with contextlib.closing(
        server.send("POST", "/api/chat", {"messages": messages, "options": {"temperature": 0}})
    ) as connection:
        lines = [json.loads(line) for line in connection.getresponse().read().splitlines()]
    assert said == response.output_text == message.content[0].text == "".join(line["message"]["content"] for line in lines)
    weather: Any = [{"role": "user", "content": "What is the weather in Rome?"}]
    tool: Any = {"name": "get_weather", "input_schema": TOOLS[0]["function"]["parameters"]}
    fields: Any = {"model": "tiny", "max_tokens": 60, "tools": [tool], "extra_body": {"temperature": 0}}
    with claude.messages.stream(messages=weather, **fields) as stream:
        called: Any = stream.get_final_message()
    assert [(b.name, b.input) for b in called.content if b.type == "tool_use"] == [("get_weather", {"city": "Rome"})]
    item = (
        server.client()
        .responses.create(
            model="tiny", input=weather, temperature=0, tools=[{"type": "function", **TOOLS[0]["function"], "strict": True}]
        )
        .output[-1]
    )
    assert item.type == "function_call" and json.loads(item.arguments) == {"city": "Rome"}
