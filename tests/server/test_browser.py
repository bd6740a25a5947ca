"""A browser's pages talk to the server as far as CORS says: those of this machine, and files and other sites that were named."""

from __future__ import annotations

import functools
import html
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.server.harness import Running, running, says

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no browser: apt-get install chromium")]
KEY = "correct-horse-battery"
FOREIGN = "page.example"
PAGE = """<!doctype html><title>waiting</title><body><script>
(async () => {
  const found = {};
  const headers = {"content-type": "application/json", ...HEADERS};
  const body = JSON.stringify({messages: [{role: "user", content: "hi"}], STREAM});
  for (const [name, path, more] of [
      ["chat", "/v1/chat/completions", {method: "POST", headers, body}],
      ["simple", "/v1/chat/completions", {method: "POST", body}],
      ["models", "/v1/models", {headers: HEADERS}],
      ["sent blindly", "/v1/chat/completions", {method: "POST", body, mode: "no-cors"}]]) {
    try {
      const answer = await fetch("URL" + path, more);
      found[name] = [answer.status, await answer.text(), answer.headers.get("x-request-id")];
    } catch (error) { found[name] = [0, String(error), null]; }
  }
  document.body.textContent = JSON.stringify(found);
})();
</script></body>"""


@contextmanager
def site(folder: Path) -> Iterator[int]:
    """The port of another server on this machine, which has the pages of ``folder``."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def visit(address: str, profile: Path) -> str:
    """What the browser shows of a page once its script has run."""
    assert CHROMIUM is not None
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--user-data-dir={profile}"]
    flags += ["--virtual-time-budget=20000", "--dump-dom", f"--host-resolver-rules=MAP {FOREIGN} 127.0.0.1"]
    done = subprocess.run([CHROMIUM, *flags, address], capture_output=True, text=True, timeout=120)
    return done.stdout


def write_page(folder: Path, server: Running, *, key: str = "", stream: bool = False) -> Path:
    page = folder / "page.html"
    headers = {"authorization": f"Bearer {key}"} if key else {}
    text = (
        PAGE.replace("HEADERS", json.dumps(headers)).replace("STREAM", f"stream: {json.dumps(stream)}").replace("URL", server.url)
    )
    page.write_text(text)
    return page


def found_by(address: str, folder: Path) -> dict[str, tuple[int, str, str | None]]:
    shown = visit(address, folder / "profile")
    found = re.search(r"<body>(\{.*\})</body>", shown, re.S)
    assert found, shown[-2000:]
    return {name: tuple(answer) for name, answer in json.loads(html.unescape(found[1])).items()}


def test_pages_of_this_machine_read_answers(tmp_path: Path) -> None:
    with running(says("hello")) as server, site(tmp_path) as port:
        write_page(tmp_path, server)
        for host in ("127.0.0.1", "localhost"):
            found = found_by(f"http://{host}:{port}/page.html", tmp_path)
            for name in ("chat", "simple"):
                assert found[name][0] == 200 and '"content":"hello"' in found[name][1] and found[name][2]
            assert found["models"][0] == 200
        write_page(tmp_path, server, stream=True)
        assert found_by(f"http://localhost:{port}/page.html", tmp_path)["chat"][1].endswith("data: [DONE]\n\n")
    with running(says("hello"), api_key=KEY) as server, site(tmp_path) as port:
        write_page(tmp_path, server, key=KEY)  # a preflight comes first, and carries no key
        found = found_by(f"http://localhost:{port}/page.html", tmp_path)
        assert found["chat"][0] == 200 and found["models"][0] == 200
        assert found["simple"][0] == 401  # it may read why


def test_other_pages_read_nothing_and_make_nothing_run(tmp_path: Path) -> None:
    with running(says("hello")) as server, site(tmp_path) as port:
        page = write_page(tmp_path, server)
        for address in (f"http://{FOREIGN}:{port}/page.html", page.as_uri()):
            found = found_by(address, tmp_path)
            assert all(status == 0 for status, _, _ in found.values()), found
        assert not server.backend.requests  # not even of what was sent without asking first
        shown = visit(f"http://{FOREIGN}:{server.port}/v1/models", tmp_path / "profile")
        assert "forbidden_host" in shown  # a name of another site that leads here


def test_pages_that_were_named_read_answers(tmp_path: Path) -> None:
    with running(says("hello"), allowed_origins=["null"]) as server:
        page = write_page(tmp_path, server)
        found = found_by(page.as_uri(), tmp_path)
        assert found["chat"][0] == 200 and '"content":"hello"' in found["chat"][1]
    with site(tmp_path) as port, running(says("hello"), allowed_origins=[f"http://{FOREIGN}:{port}"]) as server:
        write_page(tmp_path, server)
        found = found_by(f"http://{FOREIGN}:{port}/page.html", tmp_path)
        assert found["chat"][0] == 200 and found["models"][0] == 200
        assert found_by((tmp_path / "page.html").as_uri(), tmp_path)["chat"][0] == 0
