"""What a person types in a chat: prompts of one line or several, and commands."""

from __future__ import annotations

import contextlib
import re
import sys

from ferrum.cli.options import nearest

COMMANDS = {
    "/help": "list these",
    "/clear": "forget the conversation",
    "/bye": "end, as do exit, quit and Ctrl-D",
}
LEAVE = ("/bye", "exit", "quit")
QUOTES = '"""'
_LIKE_A_COMMAND = re.compile(r"/[A-Za-z?]+")


def help_text() -> str:
    lines = [f"{name:<8}{what}" for name, what in COMMANDS.items()]
    lines.append(f"{QUOTES:<8}begins and ends a prompt of several lines; a paste is one too")
    lines.append(f"{'//':<8}begins a prompt with /")
    return "\n".join(lines)


def line_editing() -> None:
    """History and arrow keys for ``input``; what is pasted is one text, with its line breaks."""
    with contextlib.suppress(ImportError):
        import readline

        readline.parse_and_bind("set enable-bracketed-paste on")  # Python switches it off; libedit ignores this


def read_prompt() -> str:
    """One prompt, stripped. Raises EOFError."""
    text = input(">>> ").strip()
    if not text.startswith(QUOTES):
        return text
    text = text.removeprefix(QUOTES)
    try:
        while QUOTES not in text:
            text += "\n" + input("... ")
    except EOFError:
        print()
    return text.partition(QUOTES)[0].strip()


def prompt_of(text: str) -> str:
    """What to send for ``text``, which is no command; empty when it looks like a command that there is not, which is said."""
    if _LIKE_A_COMMAND.fullmatch(text):
        near = nearest(text, COMMANDS)
        meant = f"did you mean {near}?" if near else "/help lists what there is"
        print(f"{text} is not known · {meant} · /{text} sends it", file=sys.stderr)
        return ""
    return text[1:] if text.startswith("//") else text
