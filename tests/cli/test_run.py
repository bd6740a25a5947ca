"""``ferrum run`` and ``ferrum bench`` on the null device: what is asked, what is printed, how it ends."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.cli.packs import write_pack
from tests.cli.terminal import Terminal
from tests.conftest import CommandLine
from tests.engine.null_pack import VOCAB_SIZE

PROMPT = ("--trust", "--temperature", "0", "--max-tokens", "12")


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack for the null device, whose tokens are a fixed function of the context."""
    return write_pack(tmp_path_factory.mktemp("null") / "null.fpk", device="null")


def test_prompt_option_and_pipe_agree(ferrum: CommandLine, pack: Path) -> None:
    first = ferrum("run", str(pack), "--prompt", "hello", *PROMPT)
    assert first.returncode == 0, first.stderr
    assert 1 < len(first.stdout) <= 13 and first.stdout.endswith("\n")
    assert ferrum("run", str(pack), *PROMPT, stdin="hello\n").stdout == first.stdout
    assert ferrum("run", str(pack), *PROMPT, "--system", "be brief", stdin="hello").stdout != first.stdout


def test_jsonl(ferrum: CommandLine, pack: Path) -> None:
    text = ferrum("run", str(pack), "--prompt", "hello", *PROMPT).stdout
    done = ferrum("run", str(pack), "--prompt", "hello", *PROMPT, "--output-format", "jsonl")
    *pieces, last = [json.loads(line) for line in done.stdout.splitlines()]
    assert "".join(p["text"] for p in pieces) + "\n" == text
    assert all(p["type"] == "text" for p in pieces)
    assert last["type"] == "done" and last["usage"]["completion_tokens"] <= 12
    assert last["finish_reason"] in ("stop", "length")


def test_seed_repeats(ferrum: CommandLine, pack: Path) -> None:
    def sampled(seed: str) -> str:
        return ferrum(
            "run", str(pack), "--trust", "--prompt", "x", "--max-tokens", "30", "--temperature", "1", "--seed", seed
        ).stdout

    assert sampled("7") == sampled("7") != sampled("8")


def test_stop(ferrum: CommandLine, pack: Path) -> None:
    text = ferrum("run", str(pack), "--prompt", "hello", *PROMPT).stdout[:-1]
    stop = text[3:5]
    done = ferrum("run", str(pack), "--prompt", "hello", *PROMPT, "--stop", stop)
    assert done.stdout == text[: text.index(stop)] + "\n"


def test_an_answer_by_a_schema_or_a_grammar(ferrum: CommandLine, pack: Path, tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text('{"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3}')
    (tmp_path / "grammar.gbnf").write_text('root ::= "yes" | "no"')
    (tmp_path / "bad.json").write_text('{"not": {}}')
    ask = ("run", str(pack), "--trust", "--prompt", "x", "--seed", "3", "--temperature", "1", "--max-tokens", "99")
    done = ferrum(*ask, "--json-schema", str(tmp_path / "schema.json"))
    assert done.returncode == 0 and isinstance(json.loads(done.stdout), list), done.stderr
    assert ferrum(*ask, "--grammar", str(tmp_path / "grammar.gbnf")).stdout in ("yes\n", "no\n")
    refused = ferrum(*ask, "--json-schema", str(tmp_path / "bad.json"))
    assert refused.returncode == 1 and "the schema's keyword not is not supported" in refused.stderr
    missing = ferrum(*ask, "--grammar", str(tmp_path / "none"))
    assert missing.returncode == 1 and missing.stderr.count("\n") == 1 and "cannot read the file" in missing.stderr


def test_an_empty_prompt(ferrum: CommandLine, pack: Path) -> None:
    done = ferrum("run", str(pack), "--trust", stdin=" \n")
    assert done.returncode == 1 and done.stderr.startswith("error: the prompt is empty")


def test_a_prompt_that_does_not_fit(ferrum: CommandLine, pack: Path) -> None:
    done = ferrum("run", str(pack), *PROMPT, stdin="x" * 500)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and done.stderr.startswith("error: ")


def test_an_untrusted_pack(ferrum: CommandLine, pack: Path) -> None:
    done = ferrum("run", str(pack), "--prompt", "x")
    assert done.returncode == 1 and "--trust" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("leave", ["/bye\n", "exit\n", "quit\n", "\x04"])
def test_conversation(pack: Path, leave: str) -> None:
    terminal = Terminal("run", str(pack), *PROMPT)
    terminal.wait_for(">>> ")
    if leave == "/bye\n":
        for number, line in enumerate(("hello", "hello", "/clear", "hello", "/what"), 2):
            terminal.send(line + "\n")
            terminal.wait_for(">>> ", number)
        answers = terminal.text.replace("\r", "").split(">>> ")
        first, second, again = answers[1], answers[2], answers[4]
        assert first == again != second, "/clear forgets what was said"
        assert "/what is not known" in answers[5]
    terminal.send(leave)
    assert terminal.end() == 0


def test_ctrl_c_at_the_prompt(pack: Path) -> None:
    terminal = Terminal("run", str(pack), *PROMPT)
    terminal.wait_for(">>> ")
    # a signal between the prompt and the read that waits for a line only sets a flag: a person presses again
    for _ in range(10):
        terminal.process.send_signal(signal.SIGINT)
        if terminal.has("error: interrupted", seconds=5):
            break
    assert terminal.end() == 130


def test_bench(ferrum: CommandLine, pack: Path) -> None:
    sizes = ("--prompt-tokens", "20", "--max-tokens", "10", "--rounds", "3", "--concurrency", "2", "--trust")
    done = ferrum("bench", str(pack), *sizes, "--output", "json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert {"prefill_tokens_per_s", "decode_tokens_per_s", "ttft_s", "tpot_s", "roofs", "samples"} <= set(result)
    assert len(result["samples"]) == 3 and result["decode_tokens_per_s"] > 0
    human = ferrum("bench", str(pack), *sizes)
    assert "time to first token" in human.stdout
    done = ferrum("bench", str(pack), "--trust", "--prompt-tokens", "150", "--max-tokens", "100")
    assert done.returncode == 1 and done.stderr.startswith("error: 150 prompt tokens and 100 new ones exceed 200")


def test_explain_a_pack(ferrum: CommandLine, pack: Path) -> None:
    text = ferrum("explain", str(pack)).stdout
    assert "state    kv (paged)" in text
    assert json.loads(ferrum("explain", str(pack), "--json").stdout)["model"]["vocab_size"] == VOCAB_SIZE
    done = ferrum("explain", str(pack), "--kernel", "none")
    assert done.returncode == 1 and done.stderr.startswith("error: the pack has no such kernel · none")


def test_truncated_pack(ferrum: CommandLine, pack: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.fpk"
    cut.write_bytes(pack.read_bytes()[:-100])
    for verb in ("run", "serve", "bench", "explain", "verify"):
        done = ferrum(verb, str(cut), *(["--prompt", "x"] if verb == "run" else []))
        assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, (verb, done.stderr)
        assert done.stderr.startswith("error: the file does not end like a pack"), verb
