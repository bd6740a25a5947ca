"""Shared by all tests: one state folder per test run, one compiled built-in model per run, few threads."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.once import once

# Before anything imports numpy or torch: two workers on two cores must not start four threads each.
os.environ.setdefault("OMP_NUM_THREADS", "1")
RUN_ID = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
RUN_FOLDER = Path(tempfile.gettempdir()) / f"ferrum-tests-{RUN_ID}"
for name in [n for n in os.environ if n.startswith(("FERRUM_", "HF_"))]:
    del os.environ[name]
# A run in the background may ignore Ctrl-C, and every program that a test starts would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["FERRUM_HOME"] = str(RUN_FOLDER / "home")
os.environ["HF_HOME"] = str(RUN_FOLDER / "hub")


def pytest_sessionfinish(session: pytest.Session) -> None:
    if not hasattr(session.config, "workerinput"):
        # never the id of the environment: a run inside a test would take away the folder of the run around it
        testrun = getattr(session.config, "_ferrum_testrun", None) or str(os.getpid())
        shutil.rmtree(Path(tempfile.gettempdir()) / f"ferrum-tests-{testrun}", ignore_errors=True)


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        manager = config.pluginmanager.get_plugin("dsession")
        config._ferrum_testrun = getattr(getattr(manager, "nodemanager", None), "testrunuid", None)  # type: ignore[attr-defined]


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: object) -> None:
    """The workers' run id, so that the controller can remove their common folder."""
    config = node.config  # type: ignore[attr-defined]
    config._ferrum_testrun = node.workerinput["testrunuid"]  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def _own_variables() -> Iterator[None]:
    """What the command line, called inside a test, sets for the programs that it starts is not there for the next test."""
    before = {name: value for name, value in os.environ.items() if name.startswith("FERRUM_")}
    yield
    for name in [name for name in os.environ if name.startswith("FERRUM_")]:
        if name not in before:
            del os.environ[name]
    os.environ.update(before)


@pytest.fixture(scope="session")
def run_folder() -> Path:
    """A folder that all workers of this run share; it is filled by ``once``."""
    RUN_FOLDER.mkdir(parents=True, exist_ok=True)
    return RUN_FOLDER


@pytest.fixture(scope="session")
def tiny_pack(run_folder: Path) -> Path:
    """The built-in model compiled for this CPU in bf16, made once per run."""
    command = [sys.executable, "-m", "ferrum", "compile", "tiny", "-o"]
    return once(run_folder / "tiny.fpk", lambda part: subprocess.run([*command, str(part)], check=True, timeout=110))


CommandLine = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def ferrum(tmp_path: Path) -> CommandLine:
    """Run the command line in an empty folder and return the finished process; keyword arguments are environment."""

    def run(*arguments: str, stdin: str = "", timeout: float = 100, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ferrum", *arguments]
        env = {**os.environ, **environment}
        return subprocess.run(command, input=stdin, capture_output=True, text=True, cwd=tmp_path, env=env, timeout=timeout)

    return run
