"""What ``test_loop`` asks, beside the largest bodies and hostile grammars, on a quiet machine: part of ``make soak``."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.hostile import CHAT, HOSTILE, MEGABYTE, chat
from tests.server.test_loop import Watched, check, watched  # noqa: F401 - a fixture
from tests.structured.test_hostile import HOSTILE as GRAMMARS
from tests.structured.test_hostile import LATE

LARGEST = 8 * MEGABYTE - 1024


@pytest.mark.parametrize("name", HOSTILE)
def test_the_loop_goes_on_beside_the_largest_bodies(watched: Watched, name: str) -> None:  # noqa: F811
    check(watched, *HOSTILE[name](LARGEST))


@pytest.mark.parametrize("name", sorted({**GRAMMARS, **LATE}))
def test_the_loop_goes_on_beside_hostile_grammars(watched: Watched, name: str) -> None:  # noqa: F811
    check(watched, CHAT, chat(**asked({**GRAMMARS, **LATE}[name])))


def asked(wish: Any) -> dict[str, Any]:
    """The fields of a chat that ask for ``wish``."""
    if wish.json is not None:
        return {"response_format": {"type": "json_schema", "json_schema": {"schema": wish.json}}}
    return {"regex": wish.regex} if wish.regex is not None else {"grammar": wish.grammar}
