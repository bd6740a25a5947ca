"""From a pack to a running server and to its end.

Start: the engine's process, which ``start`` has begun, loads the pack while this one reads the tokenizer. End: SIGTERM or
SIGINT stops admission, running requests get ``drain_seconds``, what is left ends with an error event; a second signal ends
everything at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sanic import Sanic

from ferrum.devices.options import DeviceOptions
from ferrum.engine.options import EngineOptions
from ferrum.engine_process.client import EngineClient
from ferrum.engine_process.spawn import EngineProcess
from ferrum.errors import EXIT_FAILURE, EXIT_INTERRUPTED, FerrumError
from ferrum.pack.atomic import write_atomic
from ferrum.pack.prompts import Prompts, read_prompts
from ferrum.pack.reader import open_pack
from ferrum.pack.schema import Manifest
from ferrum.server.app import create_app
from ferrum.server.connections import HEADER_SECONDS, limited_protocol
from ferrum.server.listening import tls_context
from ferrum.server.log import Log
from ferrum.server.options import BACKLOG, ServeOptions
from ferrum.server.routes.status import find_stats
from ferrum.server.state import About, ServerState
from ferrum.text.template_process import TemplateProcess, pack_templates
from ferrum.text.tokenizer import Tokenizer

FLUSH_SECONDS = 1.0  # for error events to leave after the engine was closed
WATCH_SECONDS = 0.25
THROUGHPUT_SECONDS = 10.0


@dataclass(frozen=True)
class Address:
    """Where a server listens: a host and a port, or the path of a unix socket."""

    host: str = ""
    port: int = 0
    socket: str = ""


def address_of(sock: socket.socket) -> Address:
    name = sock.getsockname()
    return Address(socket=os.path.abspath(name)) if isinstance(name, str) else Address(*name[:2])


@dataclass(frozen=True)
class PackText:
    """What the server itself needs of a pack."""

    manifest: Manifest
    tokenizer: Tokenizer
    template: TemplateProcess | None
    prompts: Prompts


def load_text(path: Path, trust: bool) -> PackText:
    """Manifest, tokenizer and chat template of a pack. Raises FerrumError."""
    with open_pack(path, trust=trust) as pack:
        if "tokenizer.json" not in pack:
            step = "compile a folder that has a tokenizer.json; LLM in Python takes token ids"
            raise FerrumError("no-tokenizer", "the pack has no tokenizer, so it cannot be served", str(path), step)
        tokenizer = Tokenizer(pack.member("tokenizer.json"), longest_token=pack.manifest.text.longest_token)
        tokenizer.most_chars  # noqa: B018  # may take long where it is not in the pack: here nobody waits for it
        return PackText(pack.manifest, tokenizer, pack_templates(pack), read_prompts(pack))


def run_server(path: Path, options: ServeOptions, sock: socket.socket, engine: EngineProcess) -> int:
    """Serve on ``sock`` until a signal; the exit status."""
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_serve(path, options, sock, engine))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


async def _serve(path: Path, options: ServeOptions, sock: socket.socket, engine: EngineProcess) -> int:
    stop = Stop()
    with stop.on_signals():
        state = await _start(path, options, engine, stop)
        if state is None:  # a signal came first
            return EXIT_INTERRUPTED if stop.interrupted else 0
        try:
            state.stats = await state.backend.stats()
            server = HttpServer(state, sock)
            await server.start()
            address = address_of(sock)
            with _pid_file(options.pid_file, address, state.log):
                _announce(state, address)
                gc.freeze()  # what was loaded stays: later collections need not look at it
                gc.enable()
                telling = asyncio.ensure_future(tell_throughput(state))
                await stop.first(state)
                telling.cancel()
                await shut_down(state, server, stop)
            return EXIT_FAILURE if stop.died else EXIT_INTERRUPTED if stop.interrupted else 0
        finally:
            await state.backend.close()
            state.close()


async def _start(path: Path, options: ServeOptions, process: EngineProcess, stop: Stop) -> ServerState | None:
    """Load everything; None when a signal came meanwhile. Raises FerrumError."""
    engine = asyncio.ensure_future(start_engine(path, options, process))
    text = asyncio.ensure_future(asyncio.to_thread(load_text, path, options.trust))
    signalled = asyncio.ensure_future(stop.signalled.wait())
    try:
        both = asyncio.gather(engine, text)
        waited: list[asyncio.Future[Any]] = [both, signalled]
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if not both.done():
            both.cancel()
            await asyncio.gather(both, return_exceptions=True)
            return None
        backend, loaded = both.result()
        return_memory()
        return make_state(options, backend, loaded)
    except BaseException:
        engine.cancel()
        done = (await asyncio.gather(engine, return_exceptions=True))[0]
        if isinstance(done, EngineClient):
            await done.close()
        raise
    finally:
        signalled.cancel()


def return_memory() -> None:
    """Give back what reading a large tokenizer left behind: about 50 MB with glibc, which keeps it otherwise."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


async def start_engine(path: Path, options: ServeOptions, process: EngineProcess) -> EngineClient:
    """The engine in ``process``. Raises FerrumError."""
    return await EngineClient.start(
        path,
        process,
        device=options.device,
        trust=options.trust,
        device_options=DeviceOptions(
            max_seqs=options.max_num_seqs,
            max_tokens=options.max_num_batched_tokens,
            max_model_len=options.max_model_len,
            kv_cache_bytes=options.kv_cache_memory,
            num_threads=options.num_threads,
        ),
        engine_options=EngineOptions(max_queue=options.max_queue, prefix_cache=options.enable_prefix_caching),
    )


def make_state(options: ServeOptions, backend: Any, loaded: PackText) -> ServerState:
    manifest = loaded.manifest
    return ServerState(
        options=options,
        backend=backend,
        tokenizer=loaded.tokenizer,
        template=loaded.template,
        text=manifest.text,
        model_name=options.served_model_name or manifest.model.name,
        fingerprint=f"fp_{manifest.contract[:16]}",
        prompts=loaded.prompts,
        about=About(manifest.model.family, manifest.model.num_parameters, manifest.model.quant),
    )


class HttpServer:
    """Sanic on a socket that is already bound."""

    def __init__(self, state: ServerState, sock: socket.socket) -> None:
        self._state = state
        self._app = create_app(state)
        self._sock = sock
        self._protocol = limited_protocol(state.options.max_connections, state.options.max_connections_per_address)
        self._server: Any = None

    async def start(self) -> None:
        """Accept connections from now on."""
        context = tls_context(self._state.options) if self._state.options.tls_cert is not None else None
        # a connection is not known to the protocol, and so to its deadline, before its handshake is done
        handshake = {"ssl_handshake_timeout": HEADER_SECONDS} if context is not None else {}
        self._server = await self._app.create_server(
            sock=self._sock,
            ssl=context,
            protocol=self._protocol,
            backlog=BACKLOG,
            return_asyncio_server=True,
            asyncio_server_kwargs={"start_serving": False, **handshake},
        )
        assert self._server is not None
        await self._server.startup()
        await self._server.before_start()
        if self._state.options.batch_dir is not None:
            from ferrum.server.batch.files import FileStore  # not above: few servers keep files
            from ferrum.server.batch.jobs import Batches

            self._state.batches = Batches(self._state, FileStore(self._state.options.batch_dir))
            self._state.batches.start()
        if self._state.options.otlp_endpoint:
            from ferrum.server.traces import Traces

            self._state.traces = Traces(self._state.options.otlp_endpoint, self._state.model_name)
        await self._server.start_serving()

    async def close(self) -> None:
        """Stop listening and end every connection."""
        if self._state.batches is not None:
            await self._state.batches.close()
        self._server.close()
        for connection in list(self._server.connections):
            connection.close_if_idle()
        for connection in list(self._server.connections):
            connection.abort()
        if self._state.traces is not None:
            await asyncio.to_thread(self._state.traces.close)
        with contextlib.suppress(KeyError):
            Sanic._app_registry.pop(self._app.name)


class Stop:
    """The signals that end the server, and the death of its engine."""

    def __init__(self) -> None:
        self.signalled = asyncio.Event()
        self.at_once = asyncio.Event()
        self.died = False
        self.interrupted = False  # the first signal was Ctrl-C

    @contextlib.contextmanager
    def on_signals(self) -> Any:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.note, number)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def note(self, number: int) -> None:
        """One signal came."""
        if self.signalled.is_set():
            self.at_once.set()
        else:
            self.interrupted = number == signal.SIGINT
        self.signalled.set()

    async def first(self, state: ServerState) -> None:
        """Wait for a signal or for the end of the engine."""
        while not self.signalled.is_set():
            if not state.backend.alive:
                self.died = True
                print("error: the engine ended unexpectedly · engine process · start the server again", file=sys.stderr)
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.signalled.wait(), WATCH_SECONDS)


async def tell_throughput(state: ServerState) -> None:
    """The engine's figures in the log every ten seconds, while there are any."""
    before, then = state.stats, time.monotonic()
    while state.log.requests:
        await asyncio.sleep(THROUGHPUT_SECONDS)
        stats, now = await find_stats(state), time.monotonic()
        if stats is not None and before is not None:
            state.log.throughput(before, stats, now - then)
        before, then = stats, now


async def shut_down(state: ServerState, server: HttpServer, stop: Stop) -> None:
    """Drain, then end what is left."""
    state.draining = True
    drained = asyncio.ensure_future(state.wait_idle(0 if stop.died else state.options.drain_seconds))
    at_once = asyncio.ensure_future(stop.at_once.wait())
    await asyncio.wait({drained, at_once}, return_when=asyncio.FIRST_COMPLETED)
    if stop.at_once.is_set():
        drained.cancel()
        kill(state.backend)
    closing = asyncio.ensure_future(state.backend.close())
    if state.active:
        await state.wait_idle(FLUSH_SECONDS)
    await server.close()
    at_once.cancel()
    await closing


def kill(backend: Any) -> None:
    """End the engine's process without waiting for the step that it is in."""
    process = getattr(backend, "process", None)
    if process is not None:
        process.kill()


@contextlib.contextmanager
def _pid_file(path: Path | None, address: Address, log: Log) -> Any:
    """The record that ``ferrum stop`` reads, there while the server accepts requests. A full or read-only disk is no reason
    not to serve."""
    written = path is not None and _write_record(path, asdict(address), log)
    try:
        yield
    finally:
        if path is not None and written:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        if address.socket:
            with contextlib.suppress(OSError):
                os.unlink(address.socket)


def _write_record(path: Path, address: dict[str, object], log: Log) -> bool:
    record = {"pid": os.getpid(), "started": start_time(os.getpid()), **address}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(record).encode())
    except (OSError, FerrumError) as error:
        reason = error.what if isinstance(error, FerrumError) else f"cannot make its folder: {error.strerror}"
        log.warning(f"ferrum stop will not find this server: {path}: {reason}")
        return False
    return True


def start_time(pid: int) -> int:
    """Ticks since boot at which the process started (field 22 of /proc/PID/stat); 0 where there is no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except OSError:
        return 0
    return int(fields[19])


def _announce(state: ServerState, address: Address) -> None:
    options, info = state.options, state.backend.info
    if options.quiet:
        return
    host = f"[{address.host}]" if ":" in address.host else address.host
    scheme = "https" if options.tls_cert is not None else "http"
    where = address.socket or f"{scheme}://{host}:{address.port}{options.root_path}/v1"
    print(f"serving {state.model_name} on {where} ({info.device}, {info.max_model_len} tokens)", flush=True)
