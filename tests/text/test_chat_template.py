"""Chat templates render as transformers renders them, and what a hostile one may use is bounded."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import pytest

from ferrum.errors import FerrumError
from ferrum.text.chat_template import ChatTemplate
from ferrum.text.template_sandbox import BoundedSandbox
from tests.text.templates import STYLES

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Look outside — 'now' <b>",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
CALL = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Zürich"}}}
USER = {"role": "user", "content": "What's the weather in Zürich? <3 {{ 7 * 7 }}"}
CONVERSATIONS: list[list[dict[str, Any]]] = [
    [USER],
    [{"role": "system", "content": " Be brief. "}, USER],
    [USER, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nCold."}, {"role": "user", "content": "Why?\n"}],
    [USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}, {"role": "tool", "content": "3 °C", "tool_call_id": "c1"}],
    [USER, {"role": "assistant", "content": "One", "reasoning_content": "two"}, {"role": "user", "content": "日本\t🙂"}],
]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


def theirs(source: str, conversation: list[dict[str, Any]], tools: Any, generate: bool, options: dict[str, Any]) -> str:
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        rendered, _ = render_jinja_template(
            [conversation], tools=tools, chat_template=source, add_generation_prompt=generate, **SPECIAL, **options
        )
    except (TemplateError, TypeError) as error:
        return f"refused: {type(error).__name__}"
    return str(rendered[0])


def ours(template: ChatTemplate, conversation: list[dict[str, Any]], tools: Any, generate: bool, options: dict[str, Any]) -> str:
    try:
        return template.render(conversation, tools=tools, add_generation_prompt=generate, options=options)
    except FerrumError as error:
        return f"refused: {error.code}"


@pytest.mark.parametrize("style", STYLES)
def test_renders_as_transformers(style: str) -> None:
    rendered = 0
    template = ChatTemplate(STYLES[style], special_tokens=SPECIAL)
    for conversation in CONVERSATIONS:
        for tools in (None, TOOLS):
            for generate in (False, True):
                for options in ({}, {"enable_thinking": False}):
                    expected = theirs(STYLES[style], conversation, tools, generate, options)
                    found = ours(template, conversation, tools, generate, options)
                    assert found == expected or (found[:8], expected[:8]) == ("refused:", "refused:"), (conversation, options)
                    rendered += not found.startswith("refused:")
    assert rendered >= 16


def test_openai_forms_become_what_templates_expect() -> None:
    template = ChatTemplate(STYLES["qwen3"])
    called = {**CALL, "function": {"name": "get_weather", "arguments": '{"city": "Zürich"}'}}
    plain = template.render([USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}])
    assert template.render([USER, {"role": "assistant", "content": None, "tool_calls": [called]}]) == plain
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert "user\na\nb<|im_end|>" in template.render([{"role": "user", "content": parts}])
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
        ([{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}], "invalid-arguments"),
        ([{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}], "invalid-arguments"),
        ([{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": '{"a": NaN}'}}]}], "invalid-arguments"),
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


BOMBS = [
    "{{('a'*1000000000)|length}}",
    "{{ ('a'*1000)*1000000000 }}",
    "{{ [0]*1000000000 }}",
    "{{ (range(100000)|list)*100000 }}",
    "{{ 'a'.ljust(1000000000) }}",
    "{{ 'a'|center(1000000000) }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (1000000000, 1) }}",
    "{{ '%1000000000d'|format(1) }}",
    "{{ '{:>1000000000}'.format(1) }}",
    "{{ '{:{}}'.format(1, 1000000000) }}",
    "{{ 9**(9**9) }}",
    "{{ 1.5|round(1000000000, 'ceil') }}",
    "{{ range(1000000000) }}",
    "{{ [[1]]|tojson(indent=1000000000) }}",
    "{{ ('a'*100000)|replace('a', 'b'*100000) }}",
    "{{ ('a'*100000).replace('a', 'b'*100000) }}",
    "{{ ('b'*1000000).join('a'*100000) }}",
    "{% set x = 'a'*1000000 %}{{ ''.join([x]*10000) }}",
    "{% set x = 'a'*1000000 %}{{ [x]*10000 }}",
    "{{ ('a '*8000000).split(' ')|length }}",
    "{{ ('a'*16000000)|list|length }}",
    "{% set ns=namespace(x='a') %}{% for i in range(100) %}{% set ns.x=ns.x~ns.x %}{% endfor %}{{ns.x|length}}",
    "{% set ns=namespace(x='a') %}{% for i in range(100) %}{% set ns.x=ns.x+ns.x %}{% endfor %}{{ns.x|length}}",
    "{% set ns=namespace(x=[1]) %}{% for i in range(100) %}{% set ns.x=ns.x+ns.x %}{% endfor %}{{ns.x|length}}",
    "{% set ns=namespace(x=['a']) %}{% for i in range(100) %}{% set ns.x=[ns.x,ns.x] %}{% endfor %}{{ns.x}}",
    "{% set ns=namespace(x=('a',)) %}{% for i in range(100) %}{% set ns.x=(ns.x,ns.x) %}{% endfor %}{{ns.x==ns.x}}",
    "{% set ns=namespace(x={}) %}{% for i in range(100) %}{% set ns.x={'a':ns.x,'b':ns.x} %}{% endfor %}{{ns.x|tojson}}",
    "{% set ns=namespace(x={}) %}{% for i in range(100) %}{% set ns.x=dict(a=ns.x,b=ns.x) %}{% endfor %}{{ns.x|tojson}}",
    "{% set ns=namespace(x=9) %}{% for i in range(100) %}{% set ns.x=ns.x*ns.x %}{% endfor %}{{ns.x}}",
    "{% for i in range(100000) %}{{ 'a'*1000000 }}{% endfor %}",
    "{% set x %}{% for i in range(100000) %}{{ 'a'*100000 }}{% endfor %}{% endset %}",
    "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "{% macro m(n) %}{{ m(n) }}{% endmacro %}{{ m(1) }}",
    "{% for i in [1,1] recursive %}{% if loop.depth<60 %}{{ loop([1,1]) }}{% endif %}{% endfor %}",
    "{{ [range(100000)|list|string]*1000 }}",
    "{{ strftime_now('%1000000000d') }}",
    "{{ ([range(100000)|list]*100)|sum(start=[])|length }}",
    "{% set o = namespace() %}{% set p = namespace(a=[o, o]) %}{{ p }}",
    "{% macro m(n) %}{% set x = 'a' * 9000000 ~ n %}{{ m(n + 1) }}{{ x|length }}{% endmacro %}{{ m(1) }}",
    "{% set y = 'é' * 9000000 %}{% macro m(n) %}{% set x = y[n:] %}{{ m(n + 1) }}{{ x|length }}{% endmacro %}{{ m(1) }}",
    "{% macro m(n) %}{% set x %}{{ 'a' * 9000000 }}{% endset %}{{ m(n + 1) }}{{ x|length }}{% endmacro %}{{ m(1) }}",
    "{% macro m(n) %}{% set x = range(90000)|list %}{{ m(n + 1) }}{{ x|length }}{% endmacro %}{{ m(1) }}",
    "{% macro m(n) %}{% set x = ('a' * 9000000)|upper %}{{ m(n + 1) }}{{ x|length }}{% endmacro %}{{ m(1) }}",
]

_BOMB_CHECK = """
import resource, sys
from ferrum.errors import FerrumError
from ferrum.text.chat_template import ChatTemplate
from tests.text.test_chat_template import BOMBS, USER
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
for source in BOMBS:
    try:
        ChatTemplate(source, seconds=0.3).render([USER])
    except FerrumError as error:
        assert error.code in ("template-limit", "template-failed", "bad-chat-template"), (source, error.code)
        assert "MemoryError" not in str(error)
        continue
    sys.exit("rendered: " + source)
# not ru_maxrss: a new program begins with that of the process that started it
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(int(status["VmHWM"].split()[0]) // 1024)
"""


def test_bombs_are_refused_within_bounded_memory_and_time() -> None:
    done = subprocess.run([sys.executable, "-c", _BOMB_CHECK], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr + done.stdout
    assert int(done.stdout) < 800


def test_the_clock_runs_inside_loops() -> None:
    template = ChatTemplate("{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}", seconds=0.05)
    started = time.monotonic()
    with pytest.raises(FerrumError):
        template.render([USER])
    assert time.monotonic() - started < 30


def test_every_filter_and_global_is_one_of_a_short_list() -> None:
    environment = BoundedSandbox()
    assert set(environment.globals) == {"range", "dict", "namespace", "raise_exception", "strftime_now"}
    assert not {"attr", "pprint", "xmlattr", "urlize", "wordwrap", "center", "random", "batch", "slice"} & set(
        environment.filters
    )
