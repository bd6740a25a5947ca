"""A server as its own process, over a real engine process with the null device: start, drain, end, and what it loads."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from ferrum.engine_process.spawn import EngineProcess
from ferrum.errors import FerrumError
from ferrum.server import lifecycle
from ferrum.server.listening import bind
from ferrum.server.options import ServeOptions
from ferrum.server.start import serve
from tests.engine.null_pack import write_null_pack
from tests.server.harness import sse_events
from tests.server.test_streams import eventually

# One sequence at a time, 64 choices of 150 tokens: longer than any test here waits.
LONG: dict[str, Any] = {"n": 64, "max_tokens": 150, "ignore_eos": True, "seed": 1}
NULL = {"device": "null", "trust": True}
SERVE = """
import json, sys
from pathlib import Path
from ferrum.errors import FerrumError
from ferrum.server.start import serve
from ferrum.server.options import ServeOptions
options = json.loads(sys.argv[2])
options["pid_file"] = Path(options["pid_file"])
try:
    sys.exit(serve(sys.argv[1], ServeOptions(**options)))
except FerrumError as error:
    sys.exit(f"error: {error}")
"""


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_null_pack(tmp_path_factory.mktemp("pack") / "null.fpk")


class Served:
    """A server process. ``stop`` sends SIGTERM and waits; what it wrote on stderr is in ``errors``."""

    def __init__(self, pack: Path, folder: Path, **options: Any) -> None:
        self.pid_file = folder / "server.pid"
        given = {"port": 0, "pid_file": str(self.pid_file), "max_num_seqs": 1, **NULL, **options}
        command = [sys.executable, "-c", SERVE, str(pack), json.dumps(given)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.banner = self.process.stdout.readline()
        assert self.banner, self.process.communicate()[1]
        self.record = json.loads(self.pid_file.read_text(encoding="utf-8"))
        self.port = int(self.record["port"])

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key="unused", max_retries=0, timeout=60)

    def send(self, method: str, path: str, body: Any = None) -> HTTPConnection:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        raw = None if body is None else json.dumps(body).encode()
        connection.request(method, path, raw, {"content-type": "application/json"})
        return connection

    def get(self, path: str) -> tuple[int, Any]:
        with contextlib.closing(self.send("GET", path)) as connection:
            response = connection.getresponse()
            return response.status, json.loads(response.read())

    def post(self, body: Any) -> tuple[int, str]:
        with contextlib.closing(self.send("POST", "/v1/completions", {"model": "minimal", "prompt": "Hi", **body})) as connection:
            response = connection.getresponse()
            return response.status, response.read().decode()

    def active(self) -> int:
        admission = self.get("/health")[1]["admission"]
        return int(admission["queue_depth"] + admission["active_prefill"] + admission["active_decode"])

    def signal(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def wait(self) -> tuple[int, str]:
        _, errors = self.process.communicate(timeout=30)
        return self.process.returncode, errors


@contextlib.contextmanager
def served(pack: Path, folder: Path, **options: Any) -> Iterator[Served]:
    server = Served(pack, folder, **options)
    children = psutil.Process(server.process.pid).children(recursive=True)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
        server.process.communicate()
        gone, alive = psutil.wait_procs(children, timeout=10)
        assert not alive


def in_thread(work: Callable[[], Any]) -> queue.Queue[Any]:
    """The result of ``work`` once it is there, or the exception that it raised."""
    results: queue.Queue[Any] = queue.Queue()

    def run() -> None:
        try:
            results.put(work())
        except Exception as error:
            results.put(error)

    threading.Thread(target=run, daemon=True).start()
    return results


def test_it_answers_and_ends(pack: Path, tmp_path: Path) -> None:
    with served(pack, tmp_path) as server:
        assert f"http://127.0.0.1:{server.port}/v1" in server.banner
        assert server.record["pid"] == server.process.pid and server.record["host"] == "127.0.0.1"
        client = server.client()
        name = client.models.list().data[0].id
        ask = client.chat.completions.create
        first = ask(model=name, messages=[{"role": "user", "content": "hi"}], temperature=0, max_tokens=12)
        stream = ask(model=name, messages=[{"role": "user", "content": "hi"}], temperature=0, max_tokens=12, stream=True)
        assert "".join(c.choices[0].delta.content or "" for c in stream) == first.choices[0].message.content
        again = ask(model=name, messages=[{"role": "user", "content": "hi"}], temperature=0, max_tokens=12)
        assert again.usage is not None and again.usage.prompt_tokens_details is not None
        assert again.usage.prompt_tokens_details.cached_tokens == 16
        with pytest.raises(openai.BadRequestError) as long:
            ask(model=name, messages=[{"role": "user", "content": "x" * 500}])
        assert long.value.code == "context_length_exceeded"
        server.signal()
        assert server.wait() == (0, "")
        assert not server.pid_file.exists()


def test_a_running_request_is_finished_and_no_other_is_taken(pack: Path, tmp_path: Path) -> None:
    with served(pack, tmp_path, drain_seconds=60) as server:
        whole = in_thread(lambda: server.post({**LONG, "n": 40}))
        assert eventually(lambda: server.active() > 0)
        server.signal()
        assert eventually(lambda: server.get("/health")[1]["status"] == "draining")
        status, body = server.post({"max_tokens": 1})
        assert status == 503 and json.loads(body)["error"]["code"] == "shutting_down"
        assert server.get("/ready")[0] == 503
        status, body = whole.get(timeout=60)
        assert status == 200 and json.loads(body)["usage"]["completion_tokens"] == 40 * 150
        assert server.wait() == (0, "")


def test_what_outlasts_the_drain_ends_with_an_error(pack: Path, tmp_path: Path) -> None:
    with served(pack, tmp_path, drain_seconds=0.3) as server:
        streamed = in_thread(lambda: server.post({**LONG, "stream": True}))
        # its first token is out, so its status is too, before the other request can be ahead of it
        assert eventually(lambda: server.get("/health")[1]["admission"]["active_decode"] > 0)
        whole = in_thread(lambda: server.post(LONG))
        assert eventually(lambda: server.active() > 64)
        server.signal()
        status, body = streamed.get(timeout=30)
        assert status == 200 and "event: error\n" in body and "[DONE]" not in body
        assert sse_events(body)[-1]["error"]["code"] == "shutting_down"
        status, body = whole.get(timeout=30)
        assert status == 503 and json.loads(body)["error"]["code"] == "shutting_down"
        assert server.wait() == (0, "")


def test_ctrl_c_ends_with_130(pack: Path, tmp_path: Path) -> None:
    with served(pack, tmp_path) as server:
        assert server.post({"prompt": "Hi", "max_tokens": 1})[0] == 200
        server.signal(signal.SIGINT)
        assert server.wait() == (130, "")


def test_a_second_signal_ends_at_once(pack: Path, tmp_path: Path) -> None:
    with served(pack, tmp_path, drain_seconds=300) as server:
        streamed = in_thread(lambda: server.post({**LONG, "stream": True}))
        assert eventually(lambda: server.active() > 0)
        server.signal()
        assert eventually(lambda: server.get("/health")[1]["status"] == "draining")
        server.signal(signal.SIGINT)
        assert "event: error\n" in streamed.get(timeout=30)[1]
        assert server.wait() == (0, "")


LEAVING = int(os.environ.get("DISCONNECTS", "10"))


@pytest.mark.timeout(60 + LEAVING)
def test_leaving_clients_free_the_engine(pack: Path, tmp_path: Path) -> None:
    with served(pack, tmp_path) as server:
        for stream in (False, True) * (LEAVING // 2):
            connection = server.send("POST", "/v1/completions", {"model": "minimal", "prompt": "Hi", **LONG, "stream": stream})
            time.sleep(0.02)
            connection.close()
        assert eventually(lambda: server.active() == 0)
        with contextlib.closing(server.send("GET", "/metrics")) as connection:
            page = connection.getresponse().read().decode()
        assert "\nferrum_kv_blocks_used 0\n" in page
        assert server.post({"max_tokens": 2})[0] == 200


def test_a_full_queue_is_a_429(pack: Path, tmp_path: Path) -> None:
    with served(pack, tmp_path, max_queue=70) as server:
        running = in_thread(lambda: server.post(LONG))
        assert eventually(lambda: server.active() > 0)
        status, body = server.post({**LONG, "stream": True})
        assert status == 429 and json.loads(body)["error"]["code"] == "queue_full"
        status, body = server.post({**LONG, "n": 64, "prompt": ["a", "b"]})
        assert status == 400 and json.loads(body)["error"]["param"] == "n"
        assert running.empty()


def test_the_death_of_the_engine_ends_the_server(pack: Path, tmp_path: Path) -> None:
    with served(pack, tmp_path) as server:
        streamed = in_thread(lambda: server.post({**LONG, "stream": True}))
        assert eventually(lambda: server.active() > 0)
        for child in psutil.Process(server.process.pid).children():
            child.kill()
        assert '"engine_unavailable"' in streamed.get(timeout=30)[1]
        code, errors = server.wait()
        assert code == 1 and errors.startswith("error: the engine ended unexpectedly · ") and errors.count("\n") == 1
        assert not server.pid_file.exists()


def test_the_death_of_the_server_ends_the_engine(pack: Path, tmp_path: Path) -> None:
    with served(pack, tmp_path) as server:
        running = in_thread(lambda: server.post(LONG))
        assert eventually(lambda: server.active() > 0)
        server.process.kill()  # ``served`` checks that its children end
        assert isinstance(running.get(timeout=30), OSError)


def start_serve(pack: Path | str, **options: Any) -> subprocess.Popen[str]:
    given = {"port": 0, "pid_file": os.devnull + "-none", **NULL, **options}
    command = [sys.executable, "-c", SERVE, str(pack), json.dumps(given)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_what_cannot_start_says_why_in_one_line(pack: Path, tmp_path: Path) -> None:
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as busy:
        port = busy.getsockname()[1]
        cases = {
            f"127.0.0.1:{port}": start_serve(pack, port=port),
            "nothing.fpk": start_serve(tmp_path / "nothing.fpk"),
            "max_model_len": start_serve(pack, max_model_len=10_000),
            "no.such.host.invalid": start_serve(pack, host="no.such.host.invalid", insecure=True),
        }
        for part, process in cases.items():
            output, errors = process.communicate(timeout=60)
            assert process.returncode == 1 and output == "", (part, output)
            assert part in errors and errors.startswith("error: ") and errors.count("\n") == 1, errors


def test_a_busy_port_is_found_before_anything_is_loaded() -> None:
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as busy:
        with pytest.raises(FerrumError) as caught:
            bind("127.0.0.1", busy.getsockname()[1])
        assert caught.value.code == "port-busy"


def test_a_signal_while_loading_ends_it(pack: Path, tmp_path: Path) -> None:
    given = {"port": 0, "pid_file": str(tmp_path / "pid"), **NULL}
    for delay in (0.3, 0.6, 0.9):
        process = subprocess.Popen([sys.executable, "-c", SERVE, str(pack), json.dumps(given)], stderr=subprocess.PIPE, text=True)
        time.sleep(delay)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
        assert process.returncode in (0, -signal.SIGTERM) and errors == "", errors
    assert not (tmp_path / "pid").exists()


def test_ctrl_c_while_loading_is_an_interruption(pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """130 whenever it comes; loading stands still here until it does."""

    async def start(path: Path, options: ServeOptions, engine: EngineProcess, stop: lifecycle.Stop) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        await stop.signalled.wait()

    monkeypatch.setattr(lifecycle, "_start", start)
    assert serve(pack, ServeOptions(port=0)) == 130


_IMPORTS = """
import sys
import ferrum.server.app, ferrum.server.lifecycle
heavy = ("torch", "onnx", "transformers", "ferrum.graphs", "ferrum.codegen", "ferrum.templates", "huggingface_hub", "rich")
print(sorted(name for name in sys.modules if name in heavy or name.startswith(tuple(h + "." for h in heavy))))
"""


def test_the_server_loads_nothing_of_the_compiler() -> None:
    done = subprocess.run([sys.executable, "-c", _IMPORTS], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


def test_the_running_server_and_engine_map_no_torch(pack: Path, tmp_path: Path) -> None:
    with served(pack, tmp_path) as server:
        assert server.post({"max_tokens": 2})[0] == 200
        process = psutil.Process(server.process.pid)
        for one in (process, *process.children()):
            assert not [m.path for m in one.memory_maps() if "/torch/" in m.path or "onnx" in m.path]
        assert not [m.path for m in process.memory_maps() if "/numpy/" in m.path], "the server itself needs no arrays"


def test_a_home_that_cannot_be_written_is_no_reason_not_to_serve(pack: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    blocked = tmp_path / "run" / "server.pid"
    (blocked / "inside").mkdir(parents=True)
    for pid_file in (tmp_path / "file" / "server.pid", blocked):
        given = {"port": 0, "pid_file": str(pid_file), **NULL}
        command = [sys.executable, "-c", SERVE, str(pack), json.dumps(given)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            port = int(process.stdout.readline().partition("/v1")[0].rpartition(":")[2])
            with contextlib.closing(HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
                connection.request("GET", "/ready")
                assert connection.getresponse().status == 200
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=30)
        assert process.returncode == 0 and errors.startswith("warning: ferrum stop will not find this server")
        assert str(pid_file) in errors and errors.count("\n") == 1
    assert not list(tmp_path.rglob("*.tmp"))
