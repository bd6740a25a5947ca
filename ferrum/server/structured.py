"""The grammar of the answer that a request asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ferrum.errors import FerrumError
from ferrum.server.errors import from_ferrum
from ferrum.server.forms import wish_of
from ferrum.server.protocol import ChatRequest, GenerationRequest, Tool
from ferrum.server.state import ServerState

if TYPE_CHECKING:
    from ferrum.structured.model import Tools


def called_tools(request: ChatRequest) -> list[Tool]:
    """The tools whose calls a grammar holds; empty when the model may write what it likes."""
    choice, tools = request.tool_choice, request.tools or []
    if not tools or choice == "none":
        return []
    name = chosen_function(choice)
    called = tools if name is None else [t for t in tools if t.function.name == name]
    held = _must(choice) or any(t.function.strict for t in called) or wish_of(request)[0] is not None
    return called if held else []


def tools_of(request: ChatRequest) -> Tools | None:
    """What the grammar says of tool calls; None when it says nothing."""
    from ferrum.structured.calls import Function  # not above: nor does the start of a server wait for what few requests need
    from ferrum.structured.model import Tools

    called, choice = called_tools(request), request.tool_choice
    if not called:
        return None
    functions = tuple(Function(t.function.name, t.function.parameters, bool(t.function.strict)) for t in called)
    several = request.parallel_tool_calls is not False and chosen_function(choice) is None
    return Tools(functions=functions, choice="must" if _must(choice) else "may", several=several)


def _must(choice: Any) -> bool:
    return choice == "required" or chosen_function(choice) is not None


def chosen_function(choice: Any) -> str | None:
    """The function that ``tool_choice`` names; None for a mode."""
    if not isinstance(choice, dict):
        return None
    named = choice.get("function")
    name = named.get("name") if isinstance(named, dict) else choice.get("name")
    return name if isinstance(name, str) else None


async def grammar_of(state: ServerState, request: GenerationRequest, prompt: str) -> str:
    """The text of the grammar that the answer to ``prompt`` must keep to; empty for none. ``prompt`` "": the answer begins at
    once. Raises ApiError."""
    wish, where = wish_of(request)
    calls = isinstance(request, ChatRequest) and bool(called_tools(request))
    if wish is None and not calls:
        return ""

    def make() -> str:
        tools = tools_of(request) if isinstance(request, ChatRequest) else None
        return state.grammars.answer(prompt, wish=wish, where=where, tools=tools)

    try:
        return await state.in_grammar_thread(make)
    except FerrumError as error:
        raise from_ferrum(error) from None
