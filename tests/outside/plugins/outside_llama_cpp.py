"""A pytest plugin that lets llama.cpp's server tests speak to ``ferrum serve``: its launcher becomes ours, the rest is theirs."""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from outside_servers import Asked, Servers
from requests.structures import CaseInsensitiveDict

TEMPLATES = Path(os.environ["OUTSIDE_TEMPLATES"])
# What their model says, which no other does. Of these only that there is text is looked at.
SAID = {
    "But she couldn't", r'(Suddenly)+|\{ " Sarax.', "^ blue", "(Aside|she|felter|alonger)+", "Whillicter", "(Suddenly)+",
    "(going|bed)+", "[ -3000 ]", r"(\{|John)+",
}  # fmt: skip
BUILT_IN = {  # templates that llama.cpp has in C++
    "chatml": "",
    "llama3": "",
    "command-r": (
        "{% set names = {'system': 'SYSTEM', 'user': 'USER', 'assistant': 'CHATBOT'} %}{% for m in messages %}"
        "<|START_OF_TURN_TOKEN|><|{{ names[m.role] }}_TOKEN|>{{ m.content }}<|END_OF_TURN_TOKEN|>{% endfor %}"
        "{% if add_generation_prompt %}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{% endif %}"
    ),
}
servers = Servers(Path(os.environ["OUTSIDE_PACKS"]))


class AnyCount(int):
    """Tokens of a prompt: as many as the tokenizer makes."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, int) and other > 0

    __hash__ = int.__hash__


def pytest_configure(config: pytest.Config) -> None:
    sys.modules.setdefault("wget", types.ModuleType("wget"))
    import utils  # theirs

    match, request = utils.match_regex, utils.ServerProcess.make_request
    utils.ServerProcess.start = start
    utils.ServerProcess.stop = lambda self: None
    utils.match_regex = lambda regex, text: bool(text) if regex in SAID else match(regex, text)
    utils.ServerProcess.make_request = lambda self, method, path, data=None, *rest, **more: any_case(
        request(self, method, path, with_reasoning(self, path, data), *rest, **more)
    )


def pytest_unconfigure(config: pytest.Config) -> None:
    servers.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        params = getattr(getattr(item, "callspec", None), "params", {})
        if "n_prompt" in params:
            params["n_prompt"] = AnyCount()


def start(self: Any, timeout_seconds: int = 0) -> None:
    """Instead of llama-server: a running ``ferrum serve`` with the same key, context and names."""
    flags: list[str] = ["--served-model-name", self.model_alias or "tinyllama-2"]
    if self.api_key:
        flags += ["--api-key", self.api_key]
    if self.n_ctx:
        flags += ["--max-model-len", str(self.n_ctx // (self.n_slots or 1))]
    self.server_port = servers.port(Asked(template_of(self), tuple(flags)))


def template_of(server: Any) -> str:
    if server.chat_template_file:
        return (TEMPLATES / Path(server.chat_template_file).name).read_text(encoding="utf-8")
    given = server.chat_template
    return str(BUILT_IN.get(given, given)) if given else ""


def with_reasoning(server: Any, path: str, data: Any) -> Any:
    """``--reasoning`` of their server is a field of a request here; theirs is on unless it is off."""
    if server.reasoning is not None and path == "/apply-template":
        return {**data, "chat_template_kwargs": {"enable_thinking": server.reasoning != "off"}}
    return data


def any_case(response: Any) -> Any:
    """Names of headers mean the same in capitals."""
    response.headers = CaseInsensitiveDict(response.headers)
    return response
