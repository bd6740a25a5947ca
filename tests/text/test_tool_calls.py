"""Tool calls in all formats: the same calls however the text is cut, and nothing of the text is lost."""

from __future__ import annotations

import json
import random

import pytest

from ferrum.errors import FerrumError
from ferrum.text.tool_calls import FORMATS, CallArguments, CallName, Content, Piece, ToolCallParser, find_format

SCHEMAS = {
    "f": {},
    "get_weather": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
}
Calls = list[tuple[str, object]]


def parse(form: str, text: str, rng: random.Random | None = None) -> tuple[str, Calls, list[Piece]]:
    parser = ToolCallParser(FORMATS[form], SCHEMAS)
    pieces: list[Piece] = []
    at = 0
    while at < len(text):
        size = rng.randint(1, 7) if rng else len(text)
        pieces += parser.feed(text[at : at + size])
        at += size
    pieces += parser.finish()
    content = "".join(p.text for p in pieces if isinstance(p, Content))
    names = [p.name for p in pieces if isinstance(p, CallName)]
    arguments = ["".join(p.text for p in pieces if isinstance(p, CallArguments) and p.index == i) for i in range(len(names))]
    return content, [(n, loaded(a)) for n, a in zip(names, arguments, strict=True)], pieces


def loaded(arguments: str) -> object:
    """The arguments, or their text where that is not JSON."""
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


WEATHER = ("get_weather", {"city": 'Oslo } "x"', "days": 2})
WEATHER_JSON = '{"name": "get_weather", "arguments": {"city": "Oslo } \\"x\\"", "days": 2}}'
CASES: list[tuple[str, str, str, Calls]] = [
    ("hermes", f"<tool_call>\n{WEATHER_JSON}\n</tool_call>", "", [WEATHER]),
    ("hermes", f"Let me see.\n<tool_call>{WEATHER_JSON}</tool_call>\n<tool_call>{WEATHER_JSON}</tool_call>\n",
     "Let me see.", [WEATHER, WEATHER]),
    ("hermes", '<tool_call>{"arguments": {"a": [1, {"b": 2}]}, "name": "f"}</tool_call>', "", [("f", {"a": [1, {"b": 2}]})]),
    ("hermes", '<tool_call>{"name": "f"}</tool_call>', "", [("f", {})]),
    ("hermes", '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [("f", {"a": 1})]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {}', "", [("f", {})]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": "un', "", [("f", '{"a": "un')]),
    ("hermes", '<tool_call>{"name": "nobody", "arguments": {}}</tool_call>',
     '<tool_call>{"name": "nobody", "arguments": {}}</tool_call>', []),
    ("hermes", "<tool_call>hello</tool_call> a <tool", "<tool_call>hello</tool_call> a <tool", []),
    ("hermes", '<tool_call><tool_call>{"name":"f","arguments":{}}</tool_call>', "", [("f", {})]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": "x\ny\t"}}</tool_call>', "", [("f", {"a": "x\ny\t"})]),
    ("hermes", '<tool_call>{"name":"f","arguments":{"a":1}}\n {"name":"f","arguments":{"b":2}}</tool_call>ok', "ok",
     [("f", {"a": 1}), ("f", {"b": 2})]),
    ("hermes", f'<tool_call>[{WEATHER_JSON}, {{"name": "f", "parameters": {{}}}}]</tool_call>, and',
     ", and", [WEATHER, ("f", {})]),
    ("hermes", '<tool_call>{"name":"f","arguments":{}}{"name":"g","arguments":{}}</tool_call>',
     '{"name":"g","arguments":{}}</tool_call>', [("f", {})]),
    ("hermes", '<tool_call>{"name":"f","arguments":{}},{"na', '{"na', [("f", {})]),
    ("mistral-args", "[TOOL_CALLS]f{}[TOOL_CALLS]g{}", "[TOOL_CALLS]g{}", [("f", {})]),
    ("functionary", "<function=f></function>", "", [("f", {})]),
    ("hermes", "plain text\n\n", "plain text\n\n", []),
    ("hermes", '<tool_call>{"name": 5}</tool_call>', '<tool_call>{"name": 5}</tool_call>', []),
    ("qwen3-coder", "<tool_call>\n<function=get_weather>\n<parameter=city>\nOslo\nNorway\n</parameter>\n<parameter=days>\n2\n"
     "</parameter>\n</function>\n</tool_call>", "", [("get_weather", {"city": "Oslo\nNorway", "days": 2})]),
    ("qwen3-coder", "ok <tool_call><function=f><parameter=x>[1, 2]</parameter></function></tool_call> done",
     "ok done", [("f", {"x": [1, 2]})]),
    ("qwen3-coder", "<tool_call>\n<function=f>\n</function>\n</tool_call>", "", [("f", {})]),
    ("qwen3-coder", "<tool_call>\n<function=nobody>\n</function>", "<tool_call>\n<function=nobody>\n</function>", []),
    ("qwen3-coder", "<tool_call><function=get_weather><parameter=city>1</parameter></function></tool_call>", "",
     [("get_weather", {"city": "1"})]),
    ("llama3", '{"name": "f", "parameters": {"q": 1}}; {"name": "f", "parameters": {}}', "", [("f", {"q": 1}), ("f", {})]),
    ("llama3", '<|python_tag|>{"name": "f", "parameters": {"q": 1}}', "", [("f", {"q": 1})]),
    ("llama3", '{"answer": 42}', '{"answer": 42}', []),
    ("llama3", 'I say {"name": "f", "parameters": {}}', 'I say {"name": "f", "parameters": {}}', []),
    ("mistral", f"[TOOL_CALLS] [{WEATHER_JSON}, {WEATHER_JSON}]", "", [WEATHER, WEATHER]),
    ("mistral", '[TOOL_CALLS]{"name": "f", "arguments": {}, "id": "abcdefghi"}', "", [("f", {})]),
    ("mistral-args", '[TOOL_CALLS]f[ARGS]{"a": {"b": 2}}[TOOL_CALLS]get_weather{"city": "x"}', "",
     [("f", {"a": {"b": 2}}), ("get_weather", {"city": "x"})]),
    ("mistral-args", 'Hm.[TOOL_CALLS]f[CALL_ID]abcdefghi[ARGS]{"a": "]\\"["}', "Hm.", [("f", {"a": ']"['})]),
    ("mistral-args", 'Sure. [TOOL_CALLS]nobody{"a": 1}', 'Sure. [TOOL_CALLS]nobody{"a": 1}', []),
    ("llama3", '[{"name": "f", "parameters": {}}, {"name": "f", "parameters": {"a": 1}}]', "", [("f", {}), ("f", {"a": 1})]),
    ("llama3", "[link](x)", "[link](x)", []),
    ("qwen3-coder", "Well.\n<function=f>\n<parameter=x>\n1\n</parameter>\n</function>\n</tool_call>", "Well.", [("f", {"x": 1})]),
    ("glm", "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>7</arg_value>\n<arg_key>days</arg_key>\n<arg_value>2"
     "</arg_value>\n</tool_call>\n<tool_call>f</tool_call>", "", [("get_weather", {"city": "7", "days": 2}), ("f", {})]),
    ("glm", "<tool_call>nobody<arg_key>a</arg_key>", "<tool_call>nobody<arg_key>a</arg_key>", []),
    ("minimax", '<minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="city">a\nb</parameter>\n</invoke>\n'
     '<invoke name="f">\n</invoke>\n</minimax:tool_call>', "", [("get_weather", {"city": "a\nb"}), ("f", {})]),
    ("deepseek-v3.2", '<｜DSML｜function_calls><｜DSML｜invoke name="f">'
     '<｜DSML｜parameter name="a" string="true">1</｜DSML｜parameter>'
     '<｜DSML｜parameter name="b" string="false">1</｜DSML｜parameter></｜DSML｜invoke></｜DSML｜function_calls>', "",
     [("f", {"a": "1", "b": 1})]),
    ("deepseek", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n"
     "```json\n{\"a\": 1}\n```<｜tool▁call▁end｜>\n"
     "<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
     "", [("f", {"a": 1}), ("f", {})]),
    ("deepseek-v3.1", "a<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>b",
     "ab", [("f", {})]),
    ("kimi", "<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{\"a\": 1}<|tool_call_end|>"
     "<|tool_call_begin|>functions.f:1<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>", "",
     [("f", {"a": 1}), ("f", {})]),
    ("gemma", '<|tool_call>call:get_weather{city:<|"|>a} "b"<|"|>,days:2}<tool_call|> so',
     " so", [("get_weather", {"city": 'a} "b"', "days": 2})]),
    ("lfm2", "<|tool_call_start|>[f(a='x)\ny', b=[1, True, null]), f()]<|tool_call_end|>", "",
     [("f", {"a": "x)\ny", "b": [1, True, None]}), ("f", {})]),
    ("lfm2", "<|tool_call_start|>[f(1)]<|tool_call_end|>", "", [("f", {"arguments": "1"})]),
    ("pythonic", "[f(a={'k': -1.5}), get_weather(city=\"it's\")]",
     "", [("f", {"a": {"k": -1.5}}), ("get_weather", {"city": "it's"})]),
    ("pythonic", "[1, 2] are numbers", "[1, 2] are numbers", []),
    ("harmony", "<|start|>assistant<|channel|>commentary<|message|>Wait.<|end|><|start|>assistant<|channel|>commentary "
     "to=functions.f <|constrain|>json<|message|>{\"a\": 1}<|call|>", "Wait.", [("f", {"a": 1})]),
    ("harmony", "<|channel|>final<|message|>Hello<|return|>", "Hello", []),
    ("command", '<|START_ACTION|>[\n{"tool_call_id": "0", "tool_name": "f", "parameters": {"a": 1}}\n]<|END_ACTION|>',
     "", [("f", {"a": 1})]),
    ("apertus", '<|tools_prefix|>[{"f": {"a": 1}}, {"f": {}}]<|tools_suffix|>', "", [("f", {"a": 1}), ("f", {})]),
    ("functionary", '<function=f>{"a": 1}</function><function=f>{}</function>', "", [("f", {"a": 1}), ("f", {})]),
    ("solar", '<|tool_calls|><|tool_call:begin|>x1<|tool_call:name|>f<|tool_call:args|>{"a": 1}<|tool_call:end|><|calls|>',
     "", [("f", {"a": 1})]),
    ("minicpm", '<function name="get_weather"><param name="city"><![CDATA[<b>]]></param></function>',
     "", [("get_weather", {"city": "<b>"})]),
]  # fmt: skip


@pytest.mark.parametrize(("form", "text", "content", "calls"), CASES)
def test_calls(form: str, text: str, content: str, calls: Calls) -> None:
    assert parse(form, text)[:2] == (content, calls)
    rng = random.Random(text)
    for _ in range(60):
        assert parse(form, text, rng)[:2] == (content, calls)


def test_damaged_texts_mean_the_same_however_they_are_cut() -> None:
    rng = random.Random(11)
    for _ in range(1_500):
        form, text, _, _ = rng.choice(CASES)
        text += rng.choice(["", "", rng.choice(CASES)[1]])
        for _ in range(rng.randint(1, 4)):
            at = rng.randint(0, len(text))
            damage = rng.choice(["", "<", "}", '"', "\n", "]", ",", "x", "<tool_call>"])
            text = text[:at] + damage + text[at + rng.randint(0, 4) :]
        found = parse(form, text)[:2]
        assert found == parse(form, text, rng)[:2], (form, text)
        assert found == parse(form, text, random.Random(0))[:2], (form, text)


def test_the_name_comes_first_and_arguments_as_they_are_made() -> None:
    parser = ToolCallParser(FORMATS["hermes"], SCHEMAS)
    assert parser.feed('<tool_call>{"name": "f", ') == [CallName(0, "f")]
    assert parser.feed('"arguments": {"a"') == [CallArguments(0, '{"a"')]
    assert parser.feed(": 1") == [CallArguments(0, ": 1")]
    assert parser.feed("}}</tool_call>") == [CallArguments(0, "}")]
    assert parser.feed("<tool_call>") == [] and parser.count == 1


def test_random_text_is_never_lost() -> None:
    """Without a declared function everything is content, whatever markers it has."""
    rng = random.Random(3)
    parts = [
        "<tool_call>",
        "</tool_call>",
        "{",
        "}",
        '"name"',
        ":",
        '"x"',
        "[TOOL_CALLS]",
        "[",
        "]",
        "<function=",
        ">",
        " ",
        "a",
        ";",
    ]
    for _ in range(3_000):
        form = rng.choice(list(FORMATS))
        text = "".join(rng.choices(parts, k=rng.randint(1, 14)))
        parser = ToolCallParser(FORMATS[form], {})
        pieces = [p for piece in (text[i : i + 3] for i in range(0, len(text), 3)) for p in parser.feed(piece)] + parser.finish()
        assert all(isinstance(p, Content) for p in pieces)
        assert "".join(p.text for p in pieces if isinstance(p, Content)) == text, (form, text)


def test_formats_by_name() -> None:
    assert find_format("") is None and find_format("hermes") is FORMATS["hermes"]
    with pytest.raises(FerrumError):
        find_format("morse")
