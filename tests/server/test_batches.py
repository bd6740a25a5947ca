"""Batches and files: OpenAI's client as it is, bounds, one bad line, order, cancelling, and a server that was killed."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ferrum.errors import FerrumError
from ferrum.server.batch import files, lines
from ferrum.server.batch.lines import read_lines, whole_lines
from ferrum.server.batch.offline import answer_file
from ferrum.server.errors import ApiError
from ferrum.server.multipart import read_form
from tests.server.fake import FakeBackend
from tests.server.harness import Running, echoes, running, says


def request(number: int, **fields: Any) -> dict[str, Any]:
    body = {"model": "tiny", "messages": [{"role": "user", "content": f"question {number}"}], "max_tokens": 50, **fields}
    return {"custom_id": f"r{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}


def jsonl(*records: Any) -> bytes:
    return b"".join(r if isinstance(r, bytes) else json.dumps(r).encode() + b"\n" for r in records)


def client(server: Running, key: str = "unused") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=20)


def settled(api: openai.OpenAI, name: str) -> Any:
    deadline = time.monotonic() + 20
    while (batch := api.batches.retrieve(name)).status not in ("completed", "failed", "cancelled"):
        assert time.monotonic() < deadline, batch
        time.sleep(0.01)
    return batch


def begin(api: openai.OpenAI, data: bytes) -> str:
    file = api.files.create(file=("in.jsonl", data), purpose="batch")
    made = api.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"a": "b"}
    )
    assert made.status == "validating" and made.metadata == {"a": "b"}
    return made.id


def test_a_batch_by_the_client(tmp_path: Path) -> None:
    bad = [b"{not json\n", request(7, nonsense=1), request(8, stream=True), {**request(9), "url": "/v1/completions"}]
    with running(echoes(), batch_dir=tmp_path / "kept") as server:
        api = client(server)
        done = settled(api, begin(api, jsonl(*map(request, range(5)), *bad)))
        assert done.status == "completed"
        assert (done.request_counts.total, done.request_counts.completed, done.request_counts.failed) == (9, 5, 4)
        answers = [json.loads(line) for line in api.files.content(done.output_file_id).text.splitlines()]
        assert [a["custom_id"] for a in answers] == [f"r{i}" for i in range(5)]
        assert all(a["response"]["body"]["object"] == "chat.completion" and a["error"] is None for a in answers)
        errors = [json.loads(line) for line in api.files.content(done.error_file_id).text.splitlines()]
        assert [e["custom_id"] for e in errors] == [None, "r7", "r8", "r9"]
        assert errors[1]["response"]["status_code"] == 400 and errors[1]["response"]["body"]["error"]["param"] == "nonsense"
        assert [e["error"]["code"] for e in errors if e["error"]] == ["invalid_json_line", "invalid_request", "invalid_url"]
        assert [b.id for b in api.batches.list()] == [done.id]
        found = {f.id: f for f in api.files.list()}
        assert {done.input_file_id, done.output_file_id, done.error_file_id} == set(found)
        assert api.files.retrieve(done.output_file_id).purpose == "batch_output"
        assert api.files.delete(done.output_file_id).deleted
        with pytest.raises(openai.NotFoundError):
            api.files.content(done.output_file_id)
    assert {p.suffix for p in (tmp_path / "kept").iterdir()} == {".json", ".data"}, "nothing unfinished is left"


def test_a_server_without_a_folder_says_so() -> None:
    with running(says("x")) as server:
        for method, path in (("GET", "/v1/files"), ("GET", "/v1/batches"), ("GET", "/files/file-1/content")):
            status, body, _ = server.request(method, path)
            assert status == 400 and "--batch-dir" in body["error"]["message"]
        status, body, _ = server.post("/v1/batches", {"input_file_id": "x", "endpoint": "/v1/chat/completions"})
        assert status == 400 and body["error"]["code"] == "unsupported_by_server"


def test_what_a_batch_refuses(tmp_path: Path) -> None:
    with running(says("x"), batch_dir=tmp_path) as server:
        api = client(server)
        file = api.files.create(file=("../../in.jsonl", jsonl(request(1))), purpose="batch")
        assert file.filename == "in.jsonl"
        for fields in (
            {"input_file_id": "file-" + "0" * 24, "endpoint": "/v1/chat/completions"},
            {"input_file_id": "../../etc/passwd", "endpoint": "/v1/chat/completions"},
        ):
            status, body, _ = server.post("/v1/batches", fields)
            assert status == 404 and body["error"]["param"] == "input_file_id"
        status, body, _ = server.post("/v1/batches", {"input_file_id": file.id, "endpoint": "/v1/embeddings"})
        assert status == 400 and body["error"]["param"] == "endpoint"
        with pytest.raises(openai.BadRequestError, match="purpose must be batch"):
            api.files.create(file=("a", b"x"), purpose="vision")
        assert server.request("GET", f"/v1/files/{file.id}%2F..")[0] == 404
        assert settled(api, begin(api, b"\n\n")).errors.data[0].code == "invalid_input"
        assert server.request("GET", "/v1/files?limit=0")[0] == server.request("GET", "/v1/files?after=x")[0] == 400
        assert server.request("POST", "/v1/files", b"x", content_type="text/plain")[0] == 415


def test_pages(tmp_path: Path) -> None:
    with running(says("x"), batch_dir=tmp_path) as server:
        api = client(server)
        made = {api.files.create(file=(f"{i}", b"x"), purpose="batch").id for i in range(5)}
        assert {f.id for f in api.files.list(limit=2)} == made, "the client follows the pages"
        page = server.request("GET", "/v1/files?limit=2")[1]
        assert len(page["data"]) == 2 and page["has_more"] and page["last_id"] == page["data"][1]["id"]


def slow_echoes() -> FakeBackend:
    backend = echoes()
    backend.token_seconds = 0.05
    return backend


def test_cancelling(tmp_path: Path) -> None:
    with running(slow_echoes(), batch_dir=tmp_path) as server:
        api = client(server)
        name = begin(api, jsonl(*map(request, range(400))))
        while api.batches.retrieve(name).request_counts.completed == 0:
            time.sleep(0.01)
        assert api.batches.cancel(name).status == "cancelling"
        done = settled(api, name)
        assert done.status == "cancelled" and 0 < done.request_counts.completed < 400
        answers = api.files.content(done.output_file_id).text.splitlines()
        assert len(answers) == done.request_counts.completed


def test_a_batch_goes_on_after_a_restart(tmp_path: Path) -> None:
    with running(slow_echoes(), batch_dir=tmp_path) as server:
        api = client(server)
        name = begin(api, jsonl(*map(request, range(40))))
        while api.batches.retrieve(name).request_counts.completed < 3:
            time.sleep(0.01)
    part = tmp_path / f"{name}.part"
    with part.open("ab") as stream:
        stream.write(b'{"custom_id": "cut')  # as a kill in the middle of a write leaves it
    before = part.read_bytes().count(b"\n")
    assert 3 <= before < 40
    with running(echoes(), batch_dir=tmp_path) as server:
        api = client(server)
        done = settled(api, name)
        answers = [json.loads(line) for line in api.files.content(done.output_file_id).text.splitlines()]
        assert [a["custom_id"] for a in answers] == [f"r{i}" for i in range(40)]
        assert len(server.backend.requests) == 40 - before, "what was answered is not asked again"


def test_a_full_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_FILES", 2)
    with running(says("x"), batch_dir=tmp_path) as server:
        api = client(server)
        for _ in range(2):
            api.files.create(file=("a", b"x"), purpose="batch")
        with pytest.raises(openai.APIStatusError) as refused:
            api.files.create(file=("a", b"x"), purpose="batch")
        assert refused.value.status_code == 413


def answer(source: Path, target: Path, backend: Any = None) -> list[tuple[int, int]]:
    told: list[tuple[int, int]] = []
    with running(backend or echoes()) as server:
        server.call(answer_file(server.state, source, target, lambda *counts: told.append(counts)))
    return told


def test_a_file_into_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "RETRY_SECONDS", 0.01)
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(jsonl(request(0), b"nonsense\n", *map(request, range(1, 30))))
    backend = echoes()
    backend.max_running = 3  # others are refused for a full queue, and asked again
    told = answer(source, target, backend)
    whole = target.read_bytes()
    names = [json.loads(line)["custom_id"] for line in whole.splitlines()]
    assert names == ["r0", None, *(f"r{i}" for i in range(1, 30))] and told[-1] == (31, 30)
    target.write_bytes(whole[: whole.index(b'"r9"') + 2])
    told = answer(source, target)
    assert told[0] == (10, 9)
    assert [json.loads(line)["custom_id"] for line in target.read_bytes().splitlines()] == names


def test_an_output_of_another_input(tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(jsonl(request(1)))
    target.write_bytes(b'{"custom_id": "other"}\n')
    with pytest.raises(FerrumError, match="other answers"):
        answer(source, target)
    assert target.read_bytes() == b'{"custom_id": "other"}\n'


@settings(deadline=None)
@given(st.binary(max_size=200), st.integers(1, 20))
def test_lines_of_any_bytes(data: bytes, longest: int) -> None:
    import io

    found = list(read_lines(io.BytesIO(data), longest))
    expected = [line for line in data.split(b"\n") if line.strip()]
    assert len(found) <= len(expected) and all(len(line) <= longest + 1 for line in found)
    if all(len(line) <= longest for line in data.split(b"\n")):
        assert [f.strip() for f in found] == [e.strip() for e in expected]
    stream = io.BytesIO(data)
    assert whole_lines(stream) == data.count(b"\n")
    assert stream.getvalue() == data[: data.rfind(b"\n") + 1]


@given(st.binary(max_size=300))
def test_forms_of_any_bytes(body: bytes) -> None:
    try:
        read_form("multipart/form-data; boundary=X", b"--X" + body)
    except ApiError as error:
        assert error.status == 400
    for kind in ("", "text/plain", "multipart/form-data", "multipart/form-data; boundary="):
        with pytest.raises(ApiError):
            read_form(kind, body)


def test_a_form_with_every_byte() -> None:
    data = bytes(range(256)) * 3 + b"\r\n--Y\r\n\r\n"
    head = b'--X\r\nContent-Disposition: form-data; name="file"; filename="a b.jsonl"\r\nContent-Type: x/y\r\n\r\n'
    form = read_form("multipart/form-data; boundary=X", head + data + b"\r\n--X--\r\n")
    assert form["file"].data == data and form["file"].filename == "a b.jsonl"


def test_a_batch_leaves_room_for_others(tmp_path: Path) -> None:
    """Half of the places stay free of its lines."""
    with running(slow_echoes(), batch_dir=tmp_path, max_num_seqs=6) as server:
        api = client(server)
        begin(api, jsonl(*map(request, range(40))))
        most, deadline = 0, time.monotonic() + 1
        while time.monotonic() < deadline:
            most = max(most, len(server.backend.live))
            time.sleep(0.01)
        assert most == 3
        assert server.chat()[0] == 200
