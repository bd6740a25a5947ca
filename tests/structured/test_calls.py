"""What a grammar lets a model write as a call, the parser of the same format reads as that call."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from ferrum.errors import FerrumError
from ferrum.pack.schema import TextRecord
from ferrum.structured.call_writing import WRITINGS
from ferrum.structured.calls import Function
from ferrum.structured.model import Tools
from ferrum.structured.wish import Structured
from ferrum.text.tool_calls import FORMATS, CallArguments, CallName, Content, ToolCallParser
from tests.structured.random_model import END, RandomModel

WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "description": "where"},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
        "unit": {"type": "string", "enum": ["c", "f"]},
        "exact": {"type": "boolean"},
        "tags": {"type": "array", "items": {"type": "integer"}},
    },
    "required": ["city", "unit"],
    "additionalProperties": False,
}
FIND = {"type": "object", "properties": {"id": {"type": "integer"}}, "required": ["id"], "additionalProperties": False}
SCHEMAS: dict[str, dict[str, Any]] = {"get_weather": WEATHER, "find.place-2": FIND, "now": {}}
FUNCTIONS = (Function("get_weather", WEATHER, True), Function("find.place-2", FIND), Function("now", None))


@pytest.fixture(scope="module")
def models() -> Iterator[Models]:
    made = Models()
    yield made
    made.close()


class Models(dict[str, RandomModel]):
    """A model for each format, made when it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.first = RandomModel()

    def __missing__(self, form: str) -> RandomModel:
        text = TextRecord(eos_token_ids=[END], tool_format=form, reasoning_start="<think>", reasoning_end="</think>")
        self[form] = self.first.like(text, (WRITINGS[form].value_end or '<|"|>',))
        return self[form]

    def close(self) -> None:
        self.first.close()


def read(form: str, text: str) -> tuple[str, list[tuple[str, Any]]]:
    """Content and calls of a text that comes in small pieces."""
    parser = ToolCallParser(FORMATS[form], SCHEMAS)
    pieces = [p for at in range(0, len(text), 3) for p in parser.feed(text[at : at + 3])] + parser.finish()
    names = [p.name for p in pieces if isinstance(p, CallName)]
    spelled = ["".join(p.text for p in pieces if isinstance(p, CallArguments) and p.index == i) for i in range(len(names))]
    content = "".join(p.text for p in pieces if isinstance(p, Content))
    return content, [(name, json.loads(arguments)) for name, arguments in zip(names, spelled, strict=True)]


def check(calls: list[tuple[str, Any]]) -> None:
    for name, arguments in calls:
        jsonschema.validate(arguments, SCHEMAS[name])


def test_every_format_that_is_read_is_written() -> None:
    assert WRITINGS.keys() == FORMATS.keys()


@pytest.mark.parametrize("form", sorted(WRITINGS))
def test_required_calls_are_calls(models: Models, form: str) -> None:
    model = models[form]
    grammar = model.grammars.answer("", tools=Tools(functions=FUNCTIONS, choice="must"))
    ended, several = 0, 0
    for seed in range(3):
        text, whole = model.answer(grammar, seed, most=700)
        if whole:
            content, calls = read(form, text)
            assert calls and not content, text
            check(calls)
            ended, several = ended + 1, several + (len(calls) > 1)
    assert ended


@pytest.mark.parametrize("form", ["hermes", "qwen3-coder", "harmony", "mistral", "pythonic", "gemma"])
def test_a_named_function_is_called_once(models: Models, form: str) -> None:
    model = models[form]
    grammar = model.grammars.answer("", tools=Tools(functions=FUNCTIONS[1:2], choice="must", several=False))
    for seed in range(3):
        text, whole = model.answer(grammar, seed)
        content, calls = read(form, text)
        assert whole and [name for name, _ in calls] == ["find.place-2"] and not content
        check(calls)


@pytest.mark.parametrize("form", sorted(WRITINGS))
def test_strict_functions_leave_the_model_its_words(models: Models, form: str) -> None:
    """Without a call any text is allowed; once a call begins, it goes on as one."""
    model = models[form]
    grammar = model.grammars.answer("", tools=Tools(functions=FUNCTIONS, choice="may"))
    required = model.grammars.answer("", tools=Tools(functions=FUNCTIONS[2:], choice="must", several=False))
    call, whole = model.answer(required, 0)
    assert whole
    lead = "" if FORMATS[form].at_start or WRITINGS[form].answer else "Well then. "
    for text in (f"{WRITINGS[form].answer}Hello, world", lead + call):
        assert follows(model, grammar, text), text
    begun = lead + call[: call.index("now")] + "nobody"
    assert not follows(model, grammar, begun)


def follows(model: RandomModel, grammar: str, text: str) -> bool:
    """Whether a model may say ``text`` and end there."""
    mask = model.mask(grammar)
    for token in model.vocab.encode(text, special=False):
        mask.accept(token)
        if mask.error is not None:
            return False
    mask.accept(END)
    return mask.error is None


def test_a_call_after_reasoning_or_content_in_its_place(models: Models) -> None:
    model = models["hermes"]
    grammar = model.grammars.answer(
        "<|im_start|>assistant\n", wish=Structured(json=FIND), where="x", tools=Tools(functions=FUNCTIONS[2:], choice="may")
    )
    call = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    for text in ('{"id": 1}', call, f"<think>\nwell\n</think>\n\n{call}", '<think>{"id": "x"}</think>{"id":2}'):
        assert follows(model, grammar, text), text
    for text in ("<think>\nwell\n</think>\n\nHello", '{"id": "x"}', f"{call} and", "<think>not closed"):
        assert not follows(model, grammar, text), text
    opened = model.grammars.content(Structured(json=FIND), "x", "so\n<think>\n")
    assert follows(model, opened, 'hm </think>{"id": 1}') and not follows(model, opened, '{"id": 1}')
    closed = model.grammars.content(Structured(json=FIND), "x", "so\n<think>\n\n</think>\n\n")
    assert follows(model, closed, '{"id": 1}') and not follows(model, closed, '<think></think>{"id": 1}')


def test_harmony_says_its_channels(models: Models) -> None:
    text = TextRecord(
        eos_token_ids=[END], tool_format="harmony", reasoning_start="<|channel|>analysis<|message|>", reasoning_end="<|end|>"
    )
    model = models.first.like(text)
    grammar = model.grammars.content(Structured(json=FIND), "x", "<|start|>assistant")
    final = '<|channel|>final<|message|>{"id": 1}'
    assert follows(model, grammar, final)
    assert follows(model, grammar, f"<|channel|>analysis<|message|>hm<|end|><|start|>assistant{final}")
    assert not follows(model, grammar, '{"id": 1}')


REFUSED = [
    ("qwen3-coder", {"type": "object", "properties": {"a": {"type": "string", "pattern": "x"}}}, "pattern"),
    ("glm", {"type": "object", "anyOf": [{"required": ["a"]}], "properties": {"a": {}}}, "anyOf"),
    ("pythonic", {"type": "object", "properties": {"a b": {"type": "string"}}}, "a b"),
    ("gemma", {"type": "object", "properties": {"a": {"type": "object"}}}, "several types"),
    ("hermes", {"type": "object", "properties": {"a": {"not": {}}}}, "not"),
    ("hermes", {"type": "array"}, "object"),
]


@pytest.mark.parametrize(("form", "parameters", "named"), REFUSED)
def test_what_cannot_be_kept_to_is_named(models: Models, form: str, parameters: dict[str, Any], named: str) -> None:
    with pytest.raises(FerrumError, match=named) as caught:
        models[form].grammars.answer("", tools=Tools(functions=(Function("f", parameters, True),), choice="must"))
    assert caught.value.code == "grammar-refused" and caught.value.where == "tools"


def test_functions_that_are_not_strict_are_kept_to_as_far_as_can_be(models: Models) -> None:
    parameters = {
        "type": "object",
        "properties": {"a": {"type": "string", "pattern": "x"}, "b": {"uniqueItems": True, "type": "array"}},
    }
    for form in ("hermes", "qwen3-coder"):
        assert models[form].grammars.answer("", tools=Tools(functions=(Function("f", parameters),), choice="must"))
