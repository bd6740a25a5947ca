"""The process that renders one model's chat templates: ``python -m ferrum.text.template_worker``.

The first request brings the templates, each other one a conversation. A template is a program that somebody else wrote.
"""

from __future__ import annotations

import sys
from typing import Any

from ferrum.text.bounded_worker import Bounds, serve
from ferrum.text.chat_template import ChatTemplate

HEADROOM_BYTES = 56 << 20  # with what of the address space in use was not yet resident: at most 64 MiB
BYTES_PER_BYTE = 16  # parsed, shaped and rendered text lives at the same time
SECONDS = 1.0
BYTES_PER_SECOND = 2 << 20


def main() -> int:
    templates: dict[str, ChatTemplate] = {}
    bounds = Bounds(HEADROOM_BYTES, BYTES_PER_BYTE, SECONDS, BYTES_PER_SECOND, "template-limit")
    return serve(lambda request: _answer(templates, request), bounds)


def _answer(templates: dict[str, ChatTemplate], request: dict[str, Any]) -> dict[str, Any]:
    if "templates" in request:
        for name, source in request["templates"].items():
            templates[name] = ChatTemplate(source, special_tokens=request["special_tokens"])
        return {"variables": sorted(set[str]().union(*(t.variables for t in templates.values())))}
    name = "tool_use" if request["tools"] and "tool_use" in templates else "default"
    template = templates.get(name) or next(iter(templates.values()))
    return {
        "text": template.render(
            request["messages"],
            tools=request["tools"],
            add_generation_prompt=request["add_generation_prompt"],
            options=request["options"],
        )
    }


if __name__ == "__main__":
    sys.exit(main())
