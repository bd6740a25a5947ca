"""Public chat templates render byte for byte as `transformers` renders them, and their calls are read.

The templates are other people's and not in this repository: CHAT_TEMPLATES names a folder of them (``*.jinja``), else
build/templates is looked at. The source distribution of llama-cpp-python has 70 in vendor/llama.cpp/models/templates.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ferrum.errors import FerrumError
from ferrum.text.chat_template import ChatTemplate
from ferrum.text.tool_calls import FORMATS, CallArguments, CallName, ToolCallParser
from ferrum.text.tool_probe import PLAIN, SCHEMAS, answers, find_tool_format, read_calls
from tests.text.conversations import CONVERSATIONS, TOOLS, as_clients_send, expected

FOLDER = Path(os.environ.get("CHAT_TEMPLATES") or Path(__file__).parents[2] / "build" / "templates")
TEMPLATES = sorted(FOLDER.glob("*.jinja"))
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not TEMPLATES, reason=f"no public templates: CHAT_TEMPLATES names a folder, else {FOLDER} is looked at"),
]


def ours(template: ChatTemplate, *args: object, **given: object) -> str | None:
    try:
        return template.render(*args, **given)  # type: ignore[arg-type]
    except FerrumError as error:
        assert error.code in ("template-refused", "template-failed"), error
        return None


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda p: p.stem)
def test_renders_as_transformers(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    template = ChatTemplate(source, special_tokens=SPECIAL)
    rendered = 0
    for name, messages in CONVERSATIONS.items():
        for tools in (None, TOOLS):
            for generate in (True, False):
                for options in ({}, {"enable_thinking": False}, {"reasoning_effort": "high"}):
                    there = expected(source, messages, tools=tools, add_generation_prompt=generate, **SPECIAL, **options)
                    here = ours(
                        template, as_clients_send(messages), tools=tools, add_generation_prompt=generate, options=options
                    )
                    assert here == there, (name, bool(tools), generate, options)
                    rendered += here is not None
    assert rendered >= 12


# What does not show its calls, or shows them in a way of its own, has no tool format; the compiler says why.
NO_FORMAT = {
    "HuggingFaceTB-SmolLM3-3B": "does not show", "LFM2-8B-A1B": "does not show", "LFM2.5-Instruct": "does not show",
    "google-gemma-2-2b-it": "does not show",
    "llama-cpp-rwkv-world": "does not show", "microsoft-Phi-3.5-mini-instruct": "does not show",
    "Kimi-K2-Instruct": "refuses", "Kimi-K2-Thinking": "refuses", "fireworks-ai-llama-3-firefunction-v2": "refuses",
    "llama-cpp-deepseek-r1": "refuses", "MiniMax-M3": "not known", "meetkai-functionary-medium-v3.2": "not known",
    "muse-glimmer": "not known",
}  # fmt: skip


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda p: p.stem)
def test_reads_its_own_calls(path: Path) -> None:
    """The call that a template writes is the call that is read from it, however the text is cut."""
    template = ChatTemplate(path.read_text(encoding="utf-8"), special_tokens=SPECIAL)
    name, reason = find_tool_format(template)
    if not name:
        assert NO_FORMAT.get(path.stem, "?") in reason
        return
    assert path.stem not in NO_FORMAT
    assert path.stem != "ibm-granite-granite-3.3-2B-Instruct" or name == "granite3"  # it describes calls and shows none
    texts = [text for text in answers(template, [PLAIN]) if read_calls(FORMATS[name], text) == [PLAIN]]
    for size in (1, 2, 3, 7):
        for text in texts:
            parser = ToolCallParser(FORMATS[name], SCHEMAS)
            pieces = [p for i in range(0, len(text), size) for p in parser.feed(text[i : i + size])] + parser.finish()
            assert [p.name for p in pieces if isinstance(p, CallName)] == [PLAIN[0]]
            assert json.loads("".join(p.text for p in pieces if isinstance(p, CallArguments))) == PLAIN[1]


def test_most_tool_templates_have_a_format() -> None:
    stems = {path.stem for path in TEMPLATES}
    assert len(stems - NO_FORMAT.keys()) >= 0.6 * len(stems)
