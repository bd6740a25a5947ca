"""Chat templates render as transformers renders them, and what a hostile one may use is bounded."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from ferrum.errors import FerrumError
from ferrum.text.chat_template import ChatTemplate
from ferrum.text.template_process import TemplateProcess
from ferrum.text.template_sandbox import TemplateSandbox
from ferrum.text.template_worker import SECONDS
from tests.text.bombs import BOMBS
from tests.text.conversations import CONVERSATIONS, TOOLS, USER, as_clients_send, expected
from tests.text.templates import ONLY_PARTS, STYLES

ROOT = Path(__file__).parents[2]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
CALL = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Zürich"}}}


@pytest.mark.parametrize("style", STYLES)
def test_renders_as_transformers(style: str) -> None:
    rendered = 0
    template = ChatTemplate(STYLES[style], special_tokens=SPECIAL)
    for name, messages in CONVERSATIONS.items():
        for tools in (None, TOOLS):
            for generate in (False, True):
                for options in ({}, {"enable_thinking": False}):
                    given = {"tools": tools, "add_generation_prompt": generate}
                    there = expected(STYLES[style], messages, **given, **SPECIAL, **options)
                    try:
                        here = template.render(as_clients_send(messages), **given, options=options)
                    except FerrumError:
                        here = None
                    assert here == there, (name, options)
                    rendered += here is not None
    assert rendered >= 16


def replay(arguments: str, identity: str = "abcdefgh1", **changes: Any) -> list[dict[str, Any]]:
    called = {"id": identity, "type": "function", "function": {"name": "f", "arguments": arguments}}
    turn = {"role": "assistant", "content": None, "tool_calls": [called], **changes}
    return [USER, turn, {"role": "tool", "tool_call_id": identity, "content": "r"}]


@pytest.mark.parametrize("style", [s for s in STYLES if s != "macros"])
@pytest.mark.parametrize("arguments", ['{"a": "line 1\nline 2"}', '{"a": "cut', "[1]", "", "null", '{"a": NaN}'])
def test_whatever_a_model_said_can_be_sent_back(style: str, arguments: str) -> None:
    text = ChatTemplate(STYLES[style], special_tokens=SPECIAL).render(replay(arguments))
    if style not in ("chatml", "mistral") and arguments.startswith('{"a": "'):
        assert arguments[7:10] in text


def test_ids_of_other_servers_are_shortened_for_templates_that_insist() -> None:
    template = ChatTemplate(STYLES["calls if defined"])
    text = template.render(replay("{}", "call_0123456789abcdef"))
    found = re.findall(r"\}(\w{9})\[RESULT\](\w{9})r", text)
    assert found and found[0][0] == found[0][1]
    assert template.render(replay("{}", "abcdefgh1")).count("abcdefgh1") == 2


def test_no_calls_are_as_absent_and_a_missing_content_as_null() -> None:
    for style in ("calls if defined", "llama3", "null and text"):
        template = ChatTemplate(STYLES[style], special_tokens=SPECIAL)
        plain = [USER, {"role": "assistant", "content": "ok"}, USER]
        for empty in ([], None):
            assert template.render([USER, {**plain[1], "tool_calls": empty}, USER]) == template.render(plain)
        missing = replay('{"k": 1}')
        del missing[1]["content"]
        assert template.render(missing) == template.render(replay('{"k": 1}'))


def test_contents_in_parts() -> None:
    listed = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    assert ChatTemplate(STYLES["parts"]).render(listed).startswith("<user>[a][b]")
    assert "user\na\nb<|im_end|>" in ChatTemplate(STYLES["chatml"]).render(listed)
    only = ChatTemplate(ONLY_PARTS)
    assert only.render([{"role": "user", "content": "a"}]) == only.render(listed[:1]) == "<user>a"


def test_tool_messages_name_their_function() -> None:
    template = ChatTemplate("{% for m in messages %}{{ m.name }},{% endfor %}")
    assert template.render(replay("{}")) == ",,f,"


def test_openai_forms_become_what_templates_expect() -> None:
    template = ChatTemplate(STYLES["qwen3"])
    called = {**CALL, "function": {"name": "get_weather", "arguments": '{"city": "Zürich"}'}}
    plain = template.render([USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}])
    assert template.render([USER, {"role": "assistant", "content": None, "tool_calls": [called]}]) == plain
    assert "<|im_start|>system\nx" in template.render([{"role": "developer", "content": "x"}, USER])


def test_options() -> None:
    template = ChatTemplate(STYLES["qwen3"])
    assert template.takes("enable_thinking") and not template.takes("reasoning_effort")
    assert template.render([USER], options={"enable_thinking": False}).endswith("</think>\n\n")
    for name in ("messages", "__class__", "tools", "bos_token"):
        with pytest.raises(FerrumError) as caught:
            template.render([USER], options={name: "x"})
        assert caught.value.code == "unknown-template-option"


@pytest.mark.parametrize(
    ("messages", "code"),
    [
        ([], "no-messages"),
        ([{"role": "user", "content": "a\ud800"}], "invalid-text"),
        ([{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "\ud800"}}]}], "invalid-text"),
        ([{"role": "user"}], "template-failed"),
    ],
)
def test_bad_messages_are_refused(messages: list[dict[str, Any]], code: str) -> None:
    with pytest.raises(FerrumError) as caught:
        ChatTemplate(STYLES["chatml"]).render(messages)
    assert caught.value.code == code


def test_the_template_can_refuse() -> None:
    with pytest.raises(FerrumError) as caught:
        ChatTemplate("{{ raise_exception('no\\nsystem role') }}").render([USER])
    assert caught.value.code == "template-refused" and caught.value.what.endswith("no system role")


@pytest.mark.parametrize("source", ["{% if %}", "{{ x | nosuchfilter }}", "{{ " + "(" * 5000, "{% for %}", "x" * 600_000])
def test_templates_that_are_none(source: str) -> None:
    with pytest.raises(FerrumError) as caught:
        ChatTemplate(source)
    assert caught.value.code == "bad-chat-template"


ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ self.__init__ }}",
    "{{ cycler.__init__.__globals__.os.system('true') }}",
    "{{ (messages | attr('__class__')) }}",
    "{{ '{0.__class__}'.format(messages) }}",
    "{{ '{0.__class__}'.format_map({'0': messages}) }}",
    "{{ messages.append(1) }}",
    "{{ ([] | map(attribute='__class__') | list)[0] }}",
    "{{ namespace(__class__=1) }}",
    "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "{% include 'x' %}",
    "{% import 'os' as os %}{{ os }}",
]


@pytest.mark.parametrize("source", ESCAPES)
def test_the_sandbox_holds(source: str) -> None:
    """Refused, or nothing: an unsafe attribute is undefined."""
    try:
        text = ChatTemplate(source).render([USER])
    except FerrumError:
        return
    assert text == ""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not bound the address space")
@pytest.mark.parametrize("step", [9, pytest.param(1, marks=pytest.mark.slow)])
def test_hostile_templates_are_refused_within_64_mib_and_a_second(step: int) -> None:
    command = [sys.executable, "-m", "tests.text.bombs", str(step)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    (harmless, baseline, started), *others = json.loads(done.stdout)
    assert harmless == "text" and not done.stderr
    for source, (ending, peak, seconds) in zip(BOMBS[::step], others, strict=True):
        assert ending in ("text", "template-limit", "template-failed", "bad-chat-template", "killed"), source
        assert peak < baseline + (64 << 10), source
        assert seconds < started + 2 * SECONDS, source  # of two requests, of which a hostile template lasts for one
    assert sum(ending == "text" for ending, _, _ in others) <= 5  # harmless within the bounds


def test_a_killed_process_is_replaced() -> None:
    endless = "{% if messages[0].content == 'boom' %}"
    endless += "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}{% endif %}ok"
    with TemplateProcess({"default": endless}) as process:
        assert process.render([USER]) == "ok"
        with pytest.raises(FerrumError) as caught:
            process.render([{"role": "user", "content": "boom"}])
        assert caught.value.code == "template-limit" and "shorten" in caught.value.next_step
        assert process.render([USER]) == "ok"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not bound the address space")
def test_a_conversation_that_took_too_much_memory_harms_no_other() -> None:
    greedy = "{% if messages[0].content == 'boom' %}{{ messages[0].content * 1000000000 }}{% endif %}ok"
    boom = [{"role": "user", "content": "boom"}]

    def ending(messages: list[dict[str, str]]) -> str:
        try:
            return process.render(messages)
        except FerrumError as error:
            return error.code

    with TemplateProcess({"default": greedy}) as process:
        for _ in range(3):
            assert (ending(boom), ending([USER])) == ("template-limit", "ok")
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(ending, [boom, [USER]] * 4)) == ["template-limit", "ok"] * 4


def test_whatever_a_template_raises_is_its_failure(capfd: pytest.CaptureFixture[str]) -> None:
    sources = ("{{ cycler() }}", "{{ ''|tojson(separators=1) }}", "{{ 1 // 0 }}", "{{ messages[9].content.x }}")
    for source in sources:
        with TemplateProcess({"default": source}) as process:
            for _ in range(2):
                with pytest.raises(FerrumError) as caught:
                    process.render([USER])
                assert caught.value.code == "template-failed", source
    assert capfd.readouterr().err == ""


def test_the_process_answers_as_the_template_does() -> None:
    sources = {"default": "D{{ bos_token }}{{ messages[0].content }}", "tool_use": "T{{ tools | length }}{{ enable_thinking }}"}
    with TemplateProcess(sources, {"bos_token": "<s>"}) as process:
        assert process.takes("enable_thinking") and not process.takes("reasoning_effort")
        assert process.render([{"role": "user", "content": "\ud83d"[:0] + "é\U0001f642"}]) == "D<s>é\U0001f642"
        assert process.render([USER], tools=TOOLS, options={"enable_thinking": True}) == "T2True"
        with pytest.raises(FerrumError) as caught:
            process.render([{"role": "user", "content": "a\ud800"}])
        assert caught.value.code == "invalid-text"
        big = "日本 text " * 200_000
        assert process.render([{"role": "user", "content": big}]) == "D<s>" + big
    with TemplateProcess({"default": "{% if %}"}) as process:
        for ask in (lambda: process.takes("tools"), lambda: process.render([USER])):
            with pytest.raises(FerrumError) as caught:
                ask()
            assert caught.value.code == "bad-chat-template"


def test_options_that_are_known_need_no_process() -> None:
    """A server's start does not wait for one."""
    with TemplateProcess({"default": "{{ messages[0].content }}{{ tools }}"}, options=["enable_thinking"]) as process:
        assert process.takes("enable_thinking") and not process.takes("reasoning_effort")
        assert "variables" not in vars(process)
        assert process.takes("tools") and process.render([USER])


def test_only_listed_types_have_attributes() -> None:
    reachable = {
        "''.encode": False, "''.upper": True, "''.translate": False, "(1).to_bytes": False, "1.5.hex": False, "[].append": False,
        "[].count": True, "{}.items": True, "{}.update": False, "range(3).index": False, "namespace(a=1).a": True,
        "dict.fromkeys": True, "messages.copy": True, "true.real": False, "none.x": False, "{}.items().mapping": False,
        "strftime_now.func_globals": False, "(''|escape).unescape": False,
    }  # fmt: skip
    for expression, works in reachable.items():
        source = "{% set x = " + expression + " %}{{ x is defined }}"
        assert ChatTemplate(source).render([USER]) == str(works), expression


def test_every_filter_and_global_is_known() -> None:
    environment = TemplateSandbox()
    assert set(environment.globals) == {"range", "dict", "namespace", "cycler", "joiner", "raise_exception", "strftime_now"}
    assert not {"attr", "random"} & set(environment.filters)


def test_what_transformers_leaves_to_the_caller_is_filled_in() -> None:
    listed = ChatTemplate("{{ functions }}")
    assert json.loads(listed.render([USER], tools=TOOLS)) == [tool["function"] for tool in TOOLS]
    assert listed.render([USER]) == "[]"

    guarded = "{% if not date_string is defined %}{% set date_string = '26 Jul 2024' %}{% endif %}{{ date_string }}"
    today = date.today()
    assert ChatTemplate(guarded + "|{{ datetime }}").render([USER]) == f"{today:%d %b %Y}|{today:%b %d %Y}"
    assert ChatTemplate("{{ date_string is defined }}{% macro f(datetime) %}{% endmacro %}").render([USER]) == "True"
