"""Spans at a collector: one a request, a child of the caller's, with the conventions' names and no text."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from ferrum.errors import FerrumError
from ferrum.server import start
from tests.server.harness import chat_body, running, says


@contextmanager
def collector() -> Iterator[tuple[str, list[Any]]]:
    spans: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                import gzip

                data = gzip.decompress(data)
            for resource in ExportTraceServiceRequest.FromString(data).resource_spans:
                spans.extend(s for scope in resource.scope_spans for s in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1/traces", spans
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_span_for_each_request() -> None:
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    with collector() as (endpoint, spans):
        with running(says("the answer"), otlp_endpoint=endpoint) as server:
            body = chat_body("a secret question")
            _, made, headers = server.post("/v1/chat/completions", body, traceparent=f"00-{trace}-{parent}-01")
            server.chat(nonsense=1)
            server.request("GET", "/v1/nowhere/secret")
        first, second, third = sorted(spans, key=lambda s: s.start_time_unix_nano)
    values = {a.key: a.value.string_value or a.value.int_value or a.value.double_value for a in first.attributes}
    assert first.trace_id.hex() == trace and first.parent_span_id.hex() == parent
    assert first.name == "POST /v1/chat/completions" and values["http.response.status_code"] == 200
    assert values["gen_ai.usage.input_tokens"] == made["usage"]["prompt_tokens"]
    assert values["gen_ai.usage.output_tokens"] == made["usage"]["completion_tokens"]
    assert values["ferrum.request_id"] == headers["x-request-id"] and values["gen_ai.server.time_to_first_token"] > 0
    assert first.end_time_unix_nano > first.start_time_unix_nano
    assert {a.key: a.value.string_value for a in second.attributes}["error.type"] == "unknown_parameter"
    assert third.name == "GET -" and not second.parent_span_id
    assert "secret" not in "".join(map(str, spans))


def test_a_collector_that_is_away_harms_nobody() -> None:
    with running(says("x"), otlp_endpoint="http://127.0.0.1:9/v1/traces") as server:
        assert server.chat()[0] == 200


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FerrumError, match="not installed") as refused:
        start.check_traces()
    assert "ferrum-infer[otel]" in refused.value.next_step
