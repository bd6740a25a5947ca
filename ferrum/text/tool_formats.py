"""The ways in which models write tool calls, one literal record each.

Which one a model uses is found at compile by a round trip (``tool_probe``): its template writes a call, and the format that
reads the same call is the model's. The order is that of the search.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ferrum.errors import FerrumError
from ferrum.text.call_json import JsonObject, NamedObject
from ferrum.text.call_literals import GEMMA_QUOTE, Literals, read_gemma, read_python
from ferrum.text.call_tags import Tags
from ferrum.text.json_scan import BLANK
from ferrum.text.tool_bodies import CallSyntax

_LISTS = ("[", "]", ",")


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """``markers`` begin a region of calls; ``at_start``: only as the first thing in the answer. Between calls stand ``skips``;
    ``closers`` end the region. ``drops``: strings that are no content wherever they stand; such a format reads all answers, also
    without tools. ``separators`` around calls are dropped."""

    markers: tuple[str, ...]
    call: CallSyntax
    skips: tuple[str, ...] = ()
    closers: tuple[str, ...] = ()
    at_start: bool = False
    drops: tuple[str, ...] = ()
    separators: str = BLANK

    @property
    def marks(self) -> tuple[str, ...]:
        """Every string that may hold a special token which must stay visible."""
        return (*self.markers, *self.call.marks, *self.skips, *self.closers, *self.drops)


def _json(begin: str, end: str, *more: str, **changes: object) -> ToolFormat:
    """Objects, or lists of them, between two marks."""
    return ToolFormat((begin,), JsonObject(**changes), (begin, *_LISTS, *more), (end,))  # type: ignore[arg-type]


def _invoke(prefix: str, wrappers: tuple[str, ...], key: str = r'"([^"]+)"') -> ToolFormat:
    """``<invoke name="f"><parameter name="p">v</parameter></invoke>`` with a prefix in each tag."""
    call = Tags(
        opener=f'<{prefix}invoke name="',
        name_end='">',
        key_open=f"<{prefix}parameter name=",
        key_close=">",
        key=key,
        value_close=f"</{prefix}parameter>",
        ends=(f"</{prefix}invoke>",),
    )
    begins, closers = tuple(f"<{w}>" for w in wrappers), tuple(f"</{w}>" for w in wrappers)
    return ToolFormat((*begins, call.opener), call, begins, closers)


def _functions(begin: str, end: str) -> ToolFormat:
    """``<function=f><parameter=p>v</parameter></function>`` between two marks, of which the first may be missing."""
    call = Tags("<function=", ">", "<parameter=", ">", "</parameter>", ("</function>",))
    return ToolFormat((begin, "<function="), call, (begin,), (end,))


def _arg_keys(suffix: str, name_end: str, wrappers: tuple[str, ...] = ()) -> ToolFormat:
    """``<tool_call>f<arg_key>p</arg_key><arg_value>v</arg_value></tool_call>`` with a suffix in each tag."""
    call = Tags(
        opener=f"<tool_call{suffix}>",
        name_end=name_end,
        key_open=f"<arg_key{suffix}>",
        key_close=f"</arg_key{suffix}>",
        value_open=f"<arg_value{suffix}>",
        value_close=f"</arg_value{suffix}>",
        ends=(f"</tool_call{suffix}>",),
    )
    begins, closers = tuple(f"<{w}{suffix}>" for w in wrappers), tuple(f"</{w}{suffix}>" for w in wrappers)
    return ToolFormat((*begins, call.opener), call, begins, closers)


_DEEPSEEK = ("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>")
_DEEPSEEK_ENDS = ("<｜tool▁calls▁end｜>",)
_DSML_KEY = r'"([^"]+)"(?: string="(true|false)")?'
_HARMONY_HEADS = tuple(f"<|channel|>{name}<|message|>" for name in ("final", "commentary", "analysis"))

FORMATS: Mapping[str, ToolFormat] = {
    "hermes": _json("<tool_call>", "</tool_call>"),
    "qwen3-coder": _functions("<tool_call>", "</tool_call>"),
    "glm": _arg_keys("", ""),
    "llama3": ToolFormat(
        ("<|python_tag|>", "{", "["), JsonObject(), ("<|python_tag|>", *_LISTS, ";"), at_start=True, separators=BLANK + ";"
    ),
    "mistral": ToolFormat(("[TOOL_CALLS]",), JsonObject(), ("[TOOL_CALLS]", *_LISTS)),
    "mistral-args": ToolFormat(
        ("[TOOL_CALLS]",), NamedObject("[TOOL_CALLS]", ("[ARGS]", "{"), r"\s*([\w.-]+?)\s*(?:\[CALL_ID\].*)?")
    ),
    "deepseek": ToolFormat(
        _DEEPSEEK,
        NamedObject("<｜tool▁call▁begin｜>function<｜tool▁sep｜>", ("\n",), filler="```json", end="```<｜tool▁call▁end｜>"),
        _DEEPSEEK[:1],
        _DEEPSEEK_ENDS,
    ),
    "deepseek-v3.1": ToolFormat(
        _DEEPSEEK, NamedObject(_DEEPSEEK[1], ("<｜tool▁sep｜>",), end="<｜tool▁call▁end｜>"), _DEEPSEEK[:1], _DEEPSEEK_ENDS
    ),
    "deepseek-v3.2": _invoke("｜DSML｜", ("｜DSML｜function_calls", "｜DSML｜tool_calls"), _DSML_KEY),
    "minimax": _invoke("", ("minimax:tool_call",)),
    "harmony": ToolFormat(
        (" to=functions.", "to=functions."),
        NamedObject("to=functions.", ("<|message|>",), r"([\w.-]+).*", end="<|call|>"),
        drops=("<|start|>assistant", *_HARMONY_HEADS, "<|channel|>commentary", "<|end|>", "<|return|>"),
    ),
    "gemma": ToolFormat(
        ("<|tool_call>",),
        Literals(read_gemma, "{", "}", (GEMMA_QUOTE,), "<|tool_call>call:"),
        closers=("<tool_call|>",),
    ),
    "kimi": ToolFormat(
        ("<|tool_calls_section_begin|>", "<|tool_call_begin|>"),
        NamedObject(
            "<|tool_call_begin|>",
            ("<|tool_call_argument_begin|>",),
            r"\s*(?:functions\.)?([\w.-]+?)(?::\d+)?\s*",
            end="<|tool_call_end|>",
        ),
        ("<|tool_calls_section_begin|>",),
        ("<|tool_calls_section_end|>",),
    ),
    "kimi-k3": ToolFormat(
        ("<|open|>tools<|sep|>",),
        Tags(
            '<|open|>call tool="',
            "<|sep|>",
            '<|open|>argument key="',
            "<|sep|>",
            "<|close|>argument<|sep|>",
            ("<|close|>call<|sep|>",),
            name=r'([^"]+)".*',
            key=r'([^"]+)".*',
        ),
        ("<|open|>tools<|sep|>",),
        ("<|close|>tools<|sep|>",),
    ),
    "lfm2": ToolFormat(
        ("<|tool_call_start|>",),
        Literals(read_python, "(", ")", ("'", '"')),
        ("<|tool_call_start|>", *_LISTS),
        ("<|tool_call_end|>",),
    ),
    "pythonic": ToolFormat(
        ("<|python_start|>", "["),
        Literals(read_python, "(", ")", ("'", '"')),
        ("<|python_start|>", *_LISTS),
        ("<|python_end|>",),
        at_start=True,
    ),
    "seed": _functions("<seed:tool_call>", "</seed:tool_call>"),
    "hunyuan": _arg_keys(":opensource", "<tool_sep:opensource>", ("tool_calls",)),
    "minicpm": ToolFormat(
        ('<function name="',),
        Tags('<function name="', '">', '<param name="', '">', "</param>", ("</function>",)),
    ),
    "functionary": ToolFormat(("<function=",), NamedObject("<function=", (">",), end="</function>")),
    "nemotron": _json("<TOOLCALL>", "</TOOLCALL>"),
    "tool-calls": _json("<tool_calls>", "</tool_calls>"),
    "granite3": ToolFormat(("<|tool_call|>",), JsonObject(), ("<|tool_call|>", *_LISTS)),
    "command": ToolFormat(("<|START_ACTION|>",), JsonObject(), ("<|START_ACTION|>", *_LISTS), ("<|END_ACTION|>",)),
    "command-r": ToolFormat(("Action:",), JsonObject(), ("Action:", "```json", *_LISTS), ("```",)),
    "apertus": _json("<|tools_prefix|>", "<|tools_suffix|>", keyed=True),
    "gigachat": ToolFormat(
        ("<|function_call|>", "function call<|role_sep|>"), JsonObject(), ("<|function_call|>", "function call<|role_sep|>")
    ),
    "solar": ToolFormat(
        ("<|tool_calls|>", "<|tool_call:begin|>"),
        NamedObject("<|tool_call:begin|>", ("<|tool_call:args|>",), r".*<\|tool_call:name\|>([\w.-]+)", end="<|tool_call:end|>"),
        ("<|tool_calls|>",),
        ("<|calls|>",),
    ),
}


def find_format(name: str) -> ToolFormat | None:
    """The format that a pack names; None for a model without tools. Raises FerrumError for an unknown name."""
    if not name:
        return None
    if name not in FORMATS:
        raise FerrumError("unknown-tool-format", f"unknown tool format {name}", "manifest.json", "upgrade ferrum")
    return FORMATS[name]
