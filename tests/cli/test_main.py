"""The command line itself: usage, precedence, errors as one line, exit codes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ferrum import __version__, env
from ferrum.cli import main as cli
from ferrum.cli.options import apply_settings
from ferrum.errors import FerrumError
from tests.conftest import CommandLine


def test_version_and_help(ferrum: CommandLine) -> None:
    assert ferrum("--version").stdout == f"ferrum {__version__}\n"
    text = ferrum("--help").stdout
    assert all(verb in text for verb in cli.VERBS)
    assert ferrum().returncode == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["--no-such"],
        ["fly"],
        ["serve"],
        ["serve", "x", "--port", "many"],
        ["compile", "x", "--quant", "int3"],
        ["serve", "x", "--po", "1"],
    ],
)
def test_usage_errors_are_one_line_and_status_2(ferrum: CommandLine, arguments: list[str]) -> None:
    done = ferrum(*arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("error: ") and "--help" in done.stderr


def test_unknown_model_names_close_aliases(ferrum: CommandLine) -> None:
    done = ferrum("compile", "qwen3:0.6")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: no such model · qwen3:0.6 · did you mean qwen3:0.6b")


def test_an_error_as_json(ferrum: CommandLine) -> None:
    done = ferrum("compile", "no such", "--json")
    assert done.returncode == 1
    assert json.loads(done.stderr)["error"]["code"] == "model-unknown"


def test_verbose_names_the_code(ferrum: CommandLine) -> None:
    assert ferrum("-v", "run", "missing.fpk").stderr.rstrip().endswith("ferrum explain pack-missing")


@pytest.mark.parametrize("verb", ["serve", "run", "bench"])
def test_missing_pack(ferrum: CommandLine, verb: str) -> None:
    done = ferrum(verb, "missing.fpk")
    assert done.returncode == 1
    assert done.stderr == "error: there is no such pack · missing.fpk · check the path, or make it with ferrum compile\n"


@pytest.mark.parametrize("name", ["model.bin", "model.pt", "model.pth"])
def test_pickle_files_are_refused_with_the_reason(ferrum: CommandLine, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04.")
    done = ferrum("compile", name)
    assert done.returncode == 1 and "pickle files can run code" in done.stderr


# ---- settings


def settings(tmp_path: Path, text: str) -> str:
    path = tmp_path / "ferrum.toml"
    path.write_text(text)
    return str(path)


def parsed_port(config: str | None, *flags: str) -> int:
    parser, verbs = cli.build_parser()
    apply_settings(verbs["serve"], "serve", list(cli.VERBS), config)
    port: int = parser.parse_args(["serve", "x.fpk", *flags]).port
    return port


def test_precedence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flag over environment over file over default."""
    monkeypatch.chdir(tmp_path)
    assert parsed_port(None) == 8000
    config = settings(tmp_path, "[serve]\nport = 9001\n")
    assert parsed_port(None) == 9001, "ferrum.toml in the current folder is read"
    assert parsed_port(config) == 9001
    monkeypatch.setenv("FERRUM_PORT", "9002")
    assert parsed_port(config) == 9002
    assert parsed_port(config, "-p", "9003") == 9003


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("[serve]\nprt = 1\n", "config-unknown-key"),
        ("[fly]\nport = 1\n", "config-unknown-key"),
        ("port = 1\n", "config-unknown-key"),
        ("[serve]\ntrust = true\n", "config-unknown-key"),
        ("[serve]\ninsecure = true\n", "config-unknown-key"),
        ("[serve]\nport = 'many'\n", "config-bad-value"),
        ("[serve]\nport = 70000\n", "config-bad-value"),
        ("[serve]\nquant = 'int3'\n", "config-bad-value"),
        ("[serve]\nenable-prefix-caching = 'yes'\n", "config-bad-value"),
        ("[serve\n", "config-syntax"),
    ],
)
def test_bad_settings(tmp_path: Path, text: str, code: str) -> None:
    with pytest.raises(FerrumError) as caught:
        parsed_port(settings(tmp_path, text))
    assert caught.value.code == code and "ferrum.toml" in str(caught.value)


def test_bad_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FERRUM_PORT", "many")
    with pytest.raises(FerrumError, match="FERRUM_PORT"):
        parsed_port(None)


def test_settings_reach_a_command(ferrum: CommandLine, tmp_path: Path) -> None:
    settings(tmp_path, "[pull]\nrevison = 'v1'\n")
    done = ferrum("pull", "tiny")
    assert done.returncode == 1 and "unknown setting revison" in done.stderr


def test_every_variable_has_its_flag() -> None:
    _, verbs = cli.build_parser()
    flags = {flag for parser in verbs.values() for action in parser.options().values() for flag in action.option_strings}
    assert {v.flag for v in env.VARIABLES} <= flags


# ---- faults and interruption


def test_a_fault_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(arguments: list[str]) -> int:
        raise ValueError("broken\nin two lines")

    monkeypatch.setattr(cli, "_dispatch", fail)
    assert cli.main(["list"]) == 1
    text = capsys.readouterr().err
    assert len(text.splitlines()) == 1 and text.startswith("error: ValueError: broken in two lines · test_main.py:")
    assert cli.main(["-vvv", "list"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_disk_full_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(arguments: list[str]) -> int:
        raise OSError(28, "No space left on device", "out.fpk")

    monkeypatch.setattr(cli, "_dispatch", fail)
    assert cli.main(["list"]) == 1
    assert capsys.readouterr().err == "error: no space left on the disk · out.fpk · free some space and repeat the command\n"


def test_interrupt(tmp_path: Path) -> None:
    """Ctrl-C in the middle of a command ends it with 130 and one line."""
    wait = "lambda arguments: (print('on', flush=True), time.sleep(60))"
    program = f"import sys, time; from ferrum.cli import main; main._dispatch = {wait}; sys.exit(main.main(['list']))"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "on\n"
    process.send_signal(signal.SIGINT)
    _, text = process.communicate(timeout=30)
    assert process.returncode == 130 and text == "error: interrupted\n"


def test_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    command = f"{sys.executable} -m ferrum explain import | true; {sys.executable} -m ferrum list | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, cwd=tmp_path)
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr


# ---- output


def test_narrow_terminal(tmp_path: Path) -> None:
    """In 30 columns a table becomes blocks; nothing is cut off."""
    from ferrum.cli.output import table

    rows = [("org/a-model-with-a-name", "1.5 GiB", "ready", "2026-01-01 10:00")]
    wide = table(("NAME", "SIZE", "STATUS", "MODIFIED"), rows)
    assert wide.splitlines()[1].split() == ["org/a-model-with-a-name", "1.5", "GiB", "ready", "2026-01-01", "10:00"]
    narrow = table(("NAME", "SIZE", "STATUS", "MODIFIED"), rows, width=30)
    assert narrow.splitlines()[0] == "NAME: org/a-model-with-a-name" and "ready" in narrow


def test_doctor_runs_here(ferrum: CommandLine) -> None:
    found = {f["what"]: f for f in json.loads(ferrum("doctor", "--json").stdout)}
    assert found["can compile"]["state"] == "ok" and found["can run packs"]["state"] == "ok"
    assert found["device cpu"]["detail"].startswith("cpu-")
    narrow = ferrum("doctor", COLUMNS="30")
    assert narrow.returncode == 0


def test_list_shows_broken_packs(ferrum: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "half.fpk").write_bytes(b"PK\x03\x04")
    line = ferrum("list").stdout.splitlines()[1]
    assert line.split()[:4] == ["half.fpk", "4", "B", "incomplete"]


def test_stop_without_a_server(ferrum: CommandLine) -> None:
    done = ferrum("stop")
    assert done.returncode == 0 and done.stdout == "no server is running\n"


def test_explain_words(ferrum: CommandLine) -> None:
    assert ferrum("explain", "page_attention").stdout.startswith("page_attention (stage): ")
    assert ferrum("explain", "model-unknown").stdout.startswith("model-unknown (error code): ")
    done = ferrum("explain", "nothing")
    assert done.returncode == 1 and done.stderr.startswith("error: neither a pack nor a stage nor an error code · nothing")


def test_home_flag_moves_everything(ferrum: CommandLine, tmp_path: Path) -> None:
    packs = tmp_path / "elsewhere" / "packs"
    packs.mkdir(parents=True)
    (packs / "x.fpk").write_bytes(b"")
    assert "x.fpk" in ferrum("list", "--home", str(tmp_path / "elsewhere")).stdout
    assert "x.fpk" in ferrum("--home", str(tmp_path / "elsewhere"), "list").stdout
    assert "x.fpk" not in ferrum("list").stdout


def test_reference_is_current() -> None:
    from ferrum.cli.reference import reference

    page = Path(__file__).parents[2] / "docs" / "cli.md"
    assert page.read_text(encoding="utf-8") == reference(), "run make docs"


def test_every_stage_is_explained_by_its_own_words(capsys: pytest.CaptureFixture[str]) -> None:
    from ferrum.cli.explain import stage_texts
    from ferrum.cli.main import main
    from ferrum.codegen.stages import STAGES

    for stage in STAGES:
        assert main(["explain", stage.name]) == 0
        assert stage.doc in capsys.readouterr().out
        assert stage.doc.endswith(".") and len(stage.doc) > 40
    assert list(stage_texts()) == [stage.name for stage in STAGES]


def test_a_pass_is_explained_with_the_file_that_its_golden_tests_are_named_after() -> None:
    from ferrum.codegen.stages import STAGES

    root = Path(__file__).parents[2]
    cases = {folder.name for folder in (root / "tests" / "graphs" / "goldens" / "cases").iterdir()}
    passes = {stage.name: stage.doc for stage in STAGES if stage.scope == "model" and stage.name != "import"}
    assert set(passes) == cases
    for name, text in passes.items():
        assert f"graphs/passes/{name}.py" in text and (root / "graphs" / "passes" / f"{name}.py").is_file()


def test_quants_are_the_compilers() -> None:
    from ferrum.cli.arguments import QUANTS
    from ferrum.codegen.options import QUANTS as COMPILED

    assert QUANTS == COMPILED
