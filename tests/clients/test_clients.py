"""docs/clients.md is what the last ``make clients`` found, with the programs that are here now."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.clients.clients import CLIENTS, PROGRAMS, Client, stamp
from tests.clients.script import PERSON, reply

PAGE = Path(__file__).parents[2] / "docs" / "clients.md"


def test_the_table_is_of_these_programs() -> None:
    found = re.search(r"stamp `([0-9a-f]+)`", PAGE.read_text(encoding="utf-8"))
    assert found and found[1] == stamp(), "run make clients"


@pytest.mark.parametrize("client", CLIENTS, ids=lambda c: c.name)
def test_each_client_has_its_row_and_its_lines(client: Client) -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert f"| {client.name} | " in text
    setup = client.setup()
    assert setup in text and "127.0.0.1:8000" in setup and len(setup.splitlines()) <= 6
    assert (PROGRAMS / client.program).is_file()


def test_the_script() -> None:
    tools = "<|im_start|>system\n<tools>\nadd(a: integer)\n</tools><|im_end|>\n"
    assert '"name": "add", "arguments": {"a": 2' in reply(f"{tools}<|im_start|>user\nWhat is 2 + 3?")
    assert "5" in reply(f"{tools}<|im_start|>user\n<tool_response>\n5\n</tool_response>")
    assert reply("<|im_start|>user\nWho is Ada?") == '{"name": "Ada", "age": 36}' and PERSON["age"] == 36
