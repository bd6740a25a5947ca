"""The process that renders one model's chat templates: ``python -m ferrum.text.template_worker``.

The first request on stdin brings the templates, each other one a
conversation. A template is a program that somebody else wrote; whatever it does ends here: the address space may grow by
``HEADROOM_BYTES`` and each request may take ``SECONDS`` of processor time, more for long conversations. Beyond the second
the system ends the process, and whoever asked sees the end of the stream.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

from ferrum.errors import FerrumError
from ferrum.text.chat_template import ChatTemplate
from ferrum.text.frames import parsed, read_frame, write_frame

HEADROOM_BYTES = 56 << 20  # with what of the address space in use was not yet resident: at most 64 MiB
BYTES_PER_BYTE = 16  # more of a request's own bytes: parsed, shaped and rendered text lives at the same time
SECONDS = 1.0
BYTES_PER_SECOND = 2 << 20


def main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the server, whose end is seen on stdin
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr
    base = _address_space()
    templates: dict[str, ChatTemplate] = {}
    while (frame := read_frame(requests)) is not None:
        _bound(base, len(frame))
        try:
            answer = _answer(templates, parsed(frame))
        except FerrumError as error:
            answer = {"error": [error.code, error.what, error.where, error.next_step]}
        except (MemoryError, RecursionError):
            return 1
        signal.setitimer(signal.ITIMER_PROF, 0)
        write_frame(answers, answer)
        if answer.get("error", [""])[0] == "template-limit":
            return 1  # what it took may not have come back; the next request gets a fresh process
    return 0


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


def _bound(base: int, size: int) -> None:
    """Set the limits for a request of ``size`` bytes."""
    signal.setitimer(signal.ITIMER_PROF, SECONDS + size / BYTES_PER_SECOND)
    if base:
        import resource

        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (base + HEADROOM_BYTES + BYTES_PER_BYTE * size, hard))


def _address_space() -> int:
    """Bytes of address space in use; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * 4096
    except (OSError, ValueError, IndexError):
        return 0


if __name__ == "__main__":
    sys.exit(main())
