"""The start of a server, in the order that takes the least time.

The port is bound first (a busy one costs nothing), then the engine's process starts, and only then the modules of the server
are imported here: there are two cores' worth of loading to do. So little may be imported above.
"""

from __future__ import annotations

import gc
import importlib.util
from pathlib import Path

from ferrum.engine_process.spawn import spawn
from ferrum.errors import FerrumError
from ferrum.server.listening import listen, tls_context
from ferrum.server.options import ServeOptions


def serve(pack_path: Path | str, options: ServeOptions | None = None) -> int:
    """Serve the pack until SIGTERM or SIGINT; the exit status. Raises FerrumError when it cannot start."""
    options = options or ServeOptions()
    if options.tls_cert is not None:
        tls_context(options)  # told before anything is loaded
    if options.otlp_endpoint:
        check_traces()
    with listen(options) as sock, spawn() as engine:
        gc.disable()  # what loading makes stays; the collector is let in again when the server is ready
        try:
            from ferrum.server.lifecycle import run_server  # see above

            return run_server(Path(pack_path), options, sock, engine)
        finally:
            gc.enable()


def check_traces() -> None:
    """Raises FerrumError where OpenTelemetry is not installed."""
    if importlib.util.find_spec("opentelemetry") is None or importlib.util.find_spec("opentelemetry.exporter") is None:
        step = "pip install 'ferrum-infer[otel]'"
        raise FerrumError("otel-missing", "OpenTelemetry is not installed", "--otlp-endpoint", step)
