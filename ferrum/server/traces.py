"""A span for each request, sent to an OpenTelemetry collector (OTLP over HTTP). Needs ``ferrum-infer[otel]``.

Names follow OpenTelemetry's conventions for HTTP servers and for generative AI. No text, key or address is in a span. Headers and
time limits of the exporter are set by its own ``OTEL_EXPORTER_OTLP_*`` variables.
"""

from __future__ import annotations

import time
from typing import Any

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from sanic import Request

from ferrum.server.log import RequestRecord
from ferrum.version import __version__

_OPERATIONS = {"/v1/completions": "text_completion", "/api/generate": "text_completion"}


class Traces:
    """``endpoint``: such as ``http://127.0.0.1:4318/v1/traces``. A thread sends them; a collector that is away costs them."""

    def __init__(self, endpoint: str, model: str) -> None:
        self._model = model
        self._provider = TracerProvider(resource=Resource.create({"service.name": "ferrum", "service.version": __version__}))
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
        self._tracer = self._provider.get_tracer("ferrum", __version__)
        self._context = TraceContextTextMapPropagator()

    def request(self, record: RequestRecord, request: Request) -> None:
        """Tell of a request that has ended, as a child of the span that its ``traceparent`` names."""
        ended = time.time_ns()
        span = self._tracer.start_span(
            f"{record.method} {record.route}",
            context=self._context.extract({"traceparent": request.headers.get("traceparent", "")}),
            kind=SpanKind.SERVER,
            start_time=ended - int(record.seconds * 1e9),
            attributes=self._attributes(record),
        )
        if record.status >= 500:
            span.set_status(Status(StatusCode.ERROR))
        span.end(ended)

    def _attributes(self, record: RequestRecord) -> dict[str, Any]:
        found: dict[str, Any] = {
            "http.request.method": record.method,
            "http.route": record.route,
            "http.response.status_code": record.status,
            "ferrum.request_id": record.id,
        }
        if record.error:
            found["error.type"] = record.error
        work = record.work
        if work is not None:
            found |= {
                "gen_ai.operation.name": _OPERATIONS.get(record.route, "chat"),
                "gen_ai.request.model": self._model,
                "gen_ai.usage.input_tokens": work.prompt_tokens,
                "gen_ai.usage.output_tokens": work.completion_tokens,
                "ferrum.usage.cached_tokens": work.cached_tokens,
            }
            if work.first_token_seconds is not None:
                found["gen_ai.server.time_to_first_token"] = work.first_token_seconds
        return found

    def close(self) -> None:
        """Send what is left. Blocks for a few seconds at most."""
        self._provider.shutdown()
