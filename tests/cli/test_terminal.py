"""The terminal stays as it was, long conversations go on, what is typed or pasted is one prompt, and mistakes are named."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from ferrum.cli.progress import amount
from ferrum.cli.prompts import prompt_of
from tests.cli.packs import write_pack
from tests.cli.terminal import Terminal
from tests.conftest import CommandLine
from tests.engine.null_pack import TEMPLATE

FLAGS = ("--trust", "--temperature", "0")
DIM, PLAIN = "\033[2m", "\033[0m"


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pack(tmp_path_factory.mktemp("null") / "null.fpk", device="null")


@pytest.fixture(scope="module")
def thinking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its answers are all reasoning, because its template opens one and nothing closes it."""
    template = TEMPLATE.replace("<assistant>{%", "<assistant><think>{%")
    text = {"reasoning_start": "<think>", "reasoning_end": "</think>"}
    return write_pack(tmp_path_factory.mktemp("thinking") / "null.fpk", template=template, text=text, device="null")


def test_reasoning_that_is_cut_leaves_the_terminal_plain(thinking: Path) -> None:
    terminal = Terminal("run", str(thinking), *FLAGS, "--max-tokens", "12", "--prompt", "hello", columns=200)
    terminal.wait_for("cut at max-tokens")
    assert "before the reasoning came to its end" in terminal.text or terminal.has("before the reasoning came to its end")
    assert terminal.end() == 0
    assert DIM in terminal.text and terminal.text.count(DIM) == terminal.text.count(PLAIN)
    assert terminal.text.rindex(PLAIN) > terminal.text.rindex(DIM)


def test_each_piece_ends_its_own_dimness(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """So a kill or Ctrl-Z at any moment leaves nothing behind."""
    from ferrum.cli.chat import Writer

    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    writer = Writer()
    for kind, text in (("reasoning", "a"), ("reasoning", "b"), ("text", "c"), ("text", "d"), ("reasoning", ""), ("text", "e")):
        writer.write(kind, text)
    assert capsys.readouterr().out == f"{DIM}a{PLAIN}{DIM}b{PLAIN}\ncde"


def test_through_a_pipe_a_cut_is_said(ferrum: CommandLine, thinking: Path, pack: Path) -> None:
    done = ferrum("run", str(thinking), *FLAGS, "--max-tokens", "5", stdin="hello")
    assert (done.returncode, done.stdout) == (0, "\n")
    assert done.stderr == "note: cut at max-tokens, before the reasoning came to its end\n"
    done = ferrum("run", str(pack), *FLAGS, "--max-tokens", "3", stdin="hello")
    assert len(done.stdout) > 1 and done.stderr == "note: cut at max-tokens\n"
    done = ferrum("run", str(pack), *FLAGS, "--stop", "zz", "--temperature", "2", "--seed", "1", stdin="hello")
    if "note" in done.stderr:
        assert "the context of 200 tokens is full" in done.stderr


def test_a_full_context_leaves_out_the_oldest_turns(pack: Path) -> None:
    terminal = Terminal("run", str(pack), *FLAGS, "--max-tokens", "12", columns=200)
    terminal.wait_for(">>> ")
    for number in range(2, 9):
        terminal.send("x" * 40 + "\n")
        terminal.wait_for(">>> ", number)
    assert "the context of 200 tokens is full, so the oldest turn was left out; /clear forgets all" in terminal.text
    assert "error" not in terminal.text
    terminal.send("/bye\n")
    assert terminal.end() == 0


def dones(terminal: Terminal) -> list[dict[str, object]]:
    return [json.loads(line) for line in re.findall(r'\{"type": "done".*\}', terminal.text)]


def converse(pack: Path) -> Terminal:
    terminal = Terminal("run", str(pack), *FLAGS, "--max-tokens", "2", "--output-format", "jsonl", columns=200)
    terminal.wait_for(">>> ")
    return terminal


@pytest.mark.parametrize("typed", ["\x1b[200~one\ntwo\nthree\x1b[201~\n", '"""one\ntwo\nthree"""\n'])
def test_several_lines_are_one_prompt(pack: Path, typed: str) -> None:
    pytest.importorskip("readline")
    terminal = converse(pack)
    terminal.send(typed)
    terminal.wait_for('"done"')
    terminal.send("/bye\n")
    assert terminal.end() == 0
    (done,) = dones(terminal)
    assert done["usage"] == {"prompt_tokens": len("<user>one\ntwo\nthree<assistant>") - 2, "completion_tokens": 2}


def test_prompts_that_begin_with_a_slash(pack: Path) -> None:
    terminal = converse(pack)
    for number, line in enumerate(("/etc/passwd what is it", "//help", "/help", "/claer", "/x"), 2):
        terminal.send(line + "\n")
        terminal.wait_for(">>> ", number)
    terminal.send("/bye\n")
    assert terminal.end() == 0
    assert len(dones(terminal)) == 2
    assert "/clear  forget the conversation" in terminal.text
    assert "/claer is not known · did you mean /clear? · //claer sends it" in terminal.text


def test_what_is_sent() -> None:
    cases = {"/etc/x": "/etc/x", "/a b": "/a b", "//clear": "/clear", "/nope": "", "plain": "plain", "/": "/", "/1": "/1"}
    assert {text: prompt_of(text) for text in cases} == cases


class Interrupted:
    """A model whose answer is cut by Ctrl-C."""

    class Info:
        max_model_len = 1000

    info = Info()

    def __init__(self) -> None:
        self.tokenizer = self
        self.seen: list[list[dict[str, str]]] = []

    def decode(self, ids: list[int], skip_special: bool) -> str:
        return ""

    def chat_prompt(self, messages: list[dict[str, str]], **_: object) -> list[int]:
        self.seen.append(messages)
        return [1] * sum(len(m["content"]) for m in messages)

    def stream(self, prompt: list[int], params: object) -> object:
        from ferrum.engine.outputs import Piece

        yield Piece(0, "so far", [1, 2])
        raise KeyboardInterrupt


def test_an_interrupted_answer_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    from ferrum.cli.chat import Chat
    from ferrum.engine.params import SamplingParams

    chat = Chat(Interrupted(), SamplingParams(max_tokens=9), ("", ""))  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        chat.answer("tell me")
    assert chat.messages == [{"role": "user", "content": "tell me"}, {"role": "assistant", "content": "so far"}]
    assert capsys.readouterr().out == "so far\n"


def test_amounts_are_for_people() -> None:
    assert amount(2, 7) == "2/7" and amount(3 << 20, 5 << 30) == "3.0 MiB of 5.0 GiB"


@pytest.mark.slow
def test_compile_moves_and_says_what_is_next(tmp_path: Path) -> None:
    terminal = Terminal("compile", "tiny", "-o", str(tmp_path / "t.fpk"), "--no-prove", columns=120)
    terminal.wait_for("next: ferrum serve ")
    assert terminal.end() == 0
    assert "graph" in terminal.text and re.search(r"pack .*MiB of ", terminal.text)
    assert len(set(re.findall("[⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏]", terminal.text))) > 3, "something moves while a stage runs"


@pytest.mark.parametrize("flag", ["-o", "--dump-dir"])
def test_a_place_that_cannot_be_written_is_told_before_anything_is_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, flag: str
) -> None:
    from ferrum.cli import main as cli

    def touched(*_: object) -> None:
        raise AssertionError("the model was looked at first")

    (tmp_path / "file").write_text("")
    monkeypatch.setattr("ferrum.store.local_source", touched)
    assert cli.main(["compile", "tiny", flag, str(tmp_path / "file" / "x.fpk")]) == 1
    assert "cannot write: " in capsys.readouterr().err


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    from ferrum.cli import main as cli

    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    return error


def test_mistyped_verbs_flags_and_values(capsys: pytest.CaptureFixture[str]) -> None:
    say: Callable[..., str] = lambda *arguments: said(capsys, *arguments)  # noqa: E731
    assert "'srve' is not known · did you mean serve?" in say("srve")
    assert "'zzz' is not known · choose from compile, serve" in say("zzz")
    assert say("serve", "x.fpk", "--prot", "1").endswith("did you mean --port? · ferrum serve · see ferrum serve --help\n")
    assert say("run", "x.fpk", "--zzz").endswith("--zzz · ferrum run · see ferrum run --help\n")
    assert "did you mean int4-g128?" in say("compile", "tiny", "--quant", "int4-g12")
