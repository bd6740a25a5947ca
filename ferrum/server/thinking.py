"""How long a request lets the model reason: by a number of tokens, or by an effort where the template knows none."""

from __future__ import annotations

from ferrum.engine.thinking import ThinkingBudget
from ferrum.server.errors import unsupported
from ferrum.server.protocol import ChatRequest
from ferrum.server.state import ServerState
from ferrum.text.reasoning import Opening

# the share of an answer that may be reasoning; more effort than these has no bound
EFFORTS = {"minimal": 0.1, "low": 0.2, "medium": 0.5}


def thinking_budget(state: ServerState, request: ChatRequest, room: int, begins: Opening) -> ThinkingBudget | None:
    """``room``: most tokens of the answer. None: no bound. Raises ApiError for a number that cannot be kept."""
    asked, field = request.thinking_tokens()
    marks = marks_of(state)
    if asked is None:
        share = EFFORTS.get(request.effort or "")
        takes = state.template is not None and state.template.takes("reasoning_effort")
        if share is None or takes or marks is None or not state.text.reasoning_end:
            return None
        asked = max(1, int(share * room))
    if not state.text.reasoning_end:
        raise unsupported(field, "this model does not reason, so there is nothing to bound")
    if marks is None:
        raise unsupported(field, "the marks of this model's reasoning are not single tokens, so a budget cannot close it")
    if begins is Opening.CLOSED:
        return None
    start, end = marks
    return ThinkingBudget(tokens=asked, start=start, end=end, opened=begins is Opening.OPENED)


def marks_of(state: ServerState) -> tuple[int, int] | None:
    """The token ids of the marks around reasoning."""
    found = []
    for mark in (state.text.reasoning_start, state.text.reasoning_end):
        ids = state.tokenizer.encode(mark, special=False) if mark else []
        if len(ids) != 1 or ids[0] >= state.backend.info.vocab_size:
            return None
        found.append(ids[0])
    return found[0], found[1]
