"""What ``ferrum serve`` hands to the server: flags, the environment and the settings file."""

from __future__ import annotations

from pathlib import Path

import pytest

from ferrum.cli import serve as verb
from ferrum.cli.main import main
from ferrum.server import start
from ferrum.server.options import ServeOptions


def options_of(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str, settings: str = "") -> ServeOptions:
    given: list[ServeOptions] = []

    def take(_: object, options: ServeOptions) -> int:
        given.append(options)
        return 0

    (folder / "ferrum.toml").write_text(settings, encoding="utf-8")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(verb, "find_pack", lambda _: Path("x.fpk"))
    monkeypatch.setattr(start, "serve", take)
    assert main(["serve", "x.fpk", *arguments]) == 0
    return given[0]


def test_origins_as_a_text_and_as_a_list(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    expected = ("https://a.example", "vscode-webview://*", "null")
    flag = options_of(monkeypatch, tmp_path, "--allowed-origins", "https://a.example/, vscode-webview://*,null")
    line = "[serve]\nallowed-origins = "
    texts = options_of(monkeypatch, tmp_path, settings=line + '"https://a.example,vscode-webview://*,null"')
    listed = options_of(monkeypatch, tmp_path, settings=line + '["https://a.example", "vscode-webview://*", "null"]')
    assert flag.allowed_origins == texts.allowed_origins == listed.allowed_origins == expected
    assert options_of(monkeypatch, tmp_path).allowed_origins == ()


def test_what_is_logged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    quiet, told = options_of(monkeypatch, tmp_path), options_of(monkeypatch, tmp_path, "-v", "--log-format", "json")
    assert (quiet.verbose, quiet.log_format) == (0, "text") and (told.verbose, told.log_format) == (1, "json")
    assert options_of(monkeypatch, tmp_path, "--max-connections-per-address", "7").max_connections_per_address == 7


def test_the_key_of_every_readme(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert options_of(monkeypatch, tmp_path, "--api-key", "EMPTY").api_key == "EMPTY"
