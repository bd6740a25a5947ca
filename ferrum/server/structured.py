"""The grammar of the answer that a request asks for."""

from __future__ import annotations

from typing import Any

from ferrum.errors import FerrumError
from ferrum.server.errors import from_ferrum
from ferrum.server.forms import wish_of
from ferrum.server.protocol import ChatRequest, GenerationRequest, Tool
from ferrum.server.state import ServerState
from ferrum.structured.calls import Function
from ferrum.structured.model import Tools


def tools_of(request: ChatRequest) -> Tools | None:
    """What the grammar says of tool calls; None when it says nothing and the model may write what it likes."""
    choice, tools = request.tool_choice, request.tools or []
    if not tools or choice == "none":
        return None
    name = chosen_function(choice)
    called = tools if name is None else [t for t in tools if t.function.name == name]
    functions = tuple(_function(t) for t in called)
    must = choice == "required" or name is not None
    if not must and not any(f.strict for f in functions) and wish_of(request)[0] is None:
        return None
    several = request.parallel_tool_calls is not False and name is None
    return Tools(functions=functions, choice="must" if must else "may", several=several)


def chosen_function(choice: Any) -> str | None:
    """The function that ``tool_choice`` names; None for a mode."""
    if not isinstance(choice, dict):
        return None
    named = choice.get("function")
    name = named.get("name") if isinstance(named, dict) else choice.get("name")
    return name if isinstance(name, str) else None


def _function(tool: Tool) -> Function:
    function = tool.function
    return Function(function.name, function.parameters, bool(function.strict))


async def grammar_of(state: ServerState, request: GenerationRequest, prompt: str) -> str:
    """The text of the grammar that the answer to ``prompt`` must keep to; empty for none. ``prompt`` "": the answer begins at
    once. Raises ApiError."""
    tools = tools_of(request) if isinstance(request, ChatRequest) else None
    wish, where = wish_of(request)
    if wish is None and tools is None:
        return ""
    try:
        return await state.in_grammar_thread(lambda: state.grammars.answer(prompt, wish=wish, where=where, tools=tools))
    except FerrumError as error:
        raise from_ferrum(error) from None
