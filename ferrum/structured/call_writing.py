"""How models write tool calls: one literal record a format of ``ferrum.text.tool_formats``, which reads what is written here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

NUMBER = "\0"  # stands for one or two digits within what stands around a name


@dataclass(frozen=True, slots=True, kw_only=True)
class Writing:
    """``begin`` (``before`` NAME ``middle`` ARGUMENTS ``after``), ``between`` calls, ``end``.

    ``arguments``: "json" is one object. "tags": each is ``key`` NAME ``value`` VALUE ``value_end``, where texts stand as they are
    and end with ``value_end``, and others are JSON, followed by ``pad``; ``value_text``: what stands in place of ``value`` before
    a text. "python": NAME=VALUE; "gemma": NAME:VALUE with its quotes. ``turn`` and ``answer`` are those of ``grammar.Frame``.
    ``several``: there may be more than one call.
    """

    before: str
    middle: str
    after: str
    begin: str = ""
    between: str = ""
    end: str = ""
    arguments: Literal["json", "tags", "python", "gemma"] = "json"
    key: str = ""
    value: str = ""
    value_text: str = ""
    value_end: str = ""
    pad: str = ""
    turn: str = ""
    answer: str = ""
    several: bool = True


def _list(begin: str, end: str, arguments: str = "arguments", before: str = '{"name": "') -> Writing:
    """A JSON list of calls between two marks."""
    return Writing(begin=f"{begin}[", before=before, middle=f'", "{arguments}": ', after="}", between=", ", end=f"]{end}")


def _functions(begin: str, end: str) -> Writing:
    return Writing(
        before=f"{begin}\n<function=",
        middle=">\n",
        after=f"</function>\n{end}",
        between="\n",
        arguments="tags",
        key="<parameter=",
        value=">\n",
        value_end="</parameter>\n",
        pad="\n",
    )


def _invoke(prefix: str, wrapper: str, value: str = '">', value_text: str = '">') -> Writing:
    return Writing(
        begin=f"<{wrapper}>\n",
        before=f'<{prefix}invoke name="',
        middle='">\n',
        after=f"</{prefix}invoke>",
        between="\n",
        end=f"\n</{wrapper}>",
        arguments="tags",
        key=f'<{prefix}parameter name="',
        value=value,
        value_text=value_text,
        value_end=f"</{prefix}parameter>\n",
    )


def _arg_keys(suffix: str, name_end: str, begin: str = "", end: str = "") -> Writing:
    return Writing(
        begin=begin,
        before=f"<tool_call{suffix}>",
        middle=name_end,
        after=f"</tool_call{suffix}>",
        between="\n",
        end=end,
        arguments="tags",
        key=f"<arg_key{suffix}>",
        value=f"</arg_key{suffix}>\n<arg_value{suffix}>",
        value_end=f"</arg_value{suffix}>\n",
    )


_DEEPSEEK = "<｜tool▁calls▁begin｜>"
_DEEPSEEK_CALL, _DEEPSEEK_SEP = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>"
_DEEPSEEK_END, _DEEPSEEK_ENDS = "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"

WRITINGS: Mapping[str, Writing] = {
    "hermes": Writing(before='<tool_call>\n{"name": "', middle='", "arguments": ', after="}\n</tool_call>", between="\n"),
    "qwen3-coder": _functions("<tool_call>", "</tool_call>"),
    "glm": _arg_keys("", "\n"),
    "llama3": Writing(before='{"name": "', middle='", "parameters": ', after="}", between="; "),
    "mistral": _list("[TOOL_CALLS]", ""),
    "mistral-args": Writing(before="[TOOL_CALLS]", middle="[ARGS]", after=""),
    "deepseek": Writing(
        begin=_DEEPSEEK,
        before=f"{_DEEPSEEK_CALL}function{_DEEPSEEK_SEP}",
        middle="\n```json\n",
        after=f"\n```{_DEEPSEEK_END}",
        between="\n",
        end=_DEEPSEEK_ENDS,
    ),
    "deepseek-v3.1": Writing(
        begin=_DEEPSEEK, before=_DEEPSEEK_CALL, middle=_DEEPSEEK_SEP, after=_DEEPSEEK_END, end=_DEEPSEEK_ENDS
    ),
    "deepseek-v3.2": _invoke("｜DSML｜", "｜DSML｜function_calls", '" string="false">', '" string="true">'),
    "minimax": _invoke("", "minimax:tool_call"),
    "harmony": Writing(
        before="<|channel|>commentary to=functions.",
        middle=" <|constrain|>json<|message|>",
        after="<|call|>",
        turn="<|start|>assistant",
        answer="<|channel|>final<|message|>",
        several=False,
    ),
    "gemma": Writing(before="<|tool_call>call:", middle="{", after="}<tool_call|>", arguments="gemma"),
    "kimi": Writing(
        begin="<|tool_calls_section_begin|>",
        before="<|tool_call_begin|>functions.",
        middle=f":{NUMBER}<|tool_call_argument_begin|>",
        after="<|tool_call_end|>",
        end="<|tool_calls_section_end|>",
    ),
    "kimi-k3": Writing(
        begin="<|open|>tools<|sep|>",
        before='<|open|>call tool="',
        middle='"<|sep|>',
        after="<|close|>call<|sep|>",
        end="<|close|>tools<|sep|>",
        arguments="tags",
        key='<|open|>argument key="',
        value='"<|sep|>',
        value_end="<|close|>argument<|sep|>",
    ),
    "lfm2": Writing(
        begin="<|tool_call_start|>[", before="", middle="(", after=")", between=", ", end="]<|tool_call_end|>", arguments="python"
    ),
    "pythonic": Writing(begin="[", before="", middle="(", after=")", between=", ", end="]", arguments="python"),
    "seed": _functions("<seed:tool_call>", "</seed:tool_call>"),
    "hunyuan": _arg_keys(":opensource", "<tool_sep:opensource>\n", "<tool_calls:opensource>\n", "\n</tool_calls:opensource>"),
    "minicpm": Writing(
        before='<function name="',
        middle='">',
        after="</function>",
        between="\n",
        arguments="tags",
        key='<param name="',
        value='">',
        value_end="</param>",
    ),
    "functionary": Writing(before="<function=", middle=">", after="</function>"),
    "nemotron": _list("<TOOLCALL>", "</TOOLCALL>"),
    "tool-calls": _list("<tool_calls>", "</tool_calls>"),
    "granite3": _list("<|tool_call|>", ""),
    "command": _list("<|START_ACTION|>", "<|END_ACTION|>", "parameters", f'{{"tool_call_id": "{NUMBER}", "tool_name": "'),
    "command-r": Writing(
        begin="Action:```json\n[",
        before='{"tool_name": "',
        middle='", "parameters": ',
        after="}",
        between=", ",
        end="]```",
    ),
    "apertus": Writing(begin="<|tools_prefix|>[", before='{"', middle='": ', after="}", between=", ", end="]<|tools_suffix|>"),
    "gigachat": Writing(before='<|function_call|>{"name": "', middle='", "arguments": ', after="}", several=False),
    "solar": Writing(
        begin="<|tool_calls|>",
        before=f"<|tool_call:begin|>{NUMBER}<|tool_call:name|>",
        middle="<|tool_call:args|>",
        after="<|tool_call:end|>",
        end="<|calls|>",
    ),
}
