"""The engine in a process of its own: ``python -m ferrum.engine_process.main FD``, FD an inherited socket to the client.

One thread reads the socket, the main thread runs the engine: it takes all messages that are there, runs one step and
sends the step's tokens in one message. The process ends with ``Shutdown``, with its client (the socket closes), or after
``Failed``. Signals meant for the terminal's process group are ignored: the client decides when the engine ends.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import threading
import traceback
from queue import Empty, SimpleQueue

from ferrum.engine.encoder import Encoder
from ferrum.engine.engine import Engine
from ferrum.engine.load import LoadedModel, load_model
from ferrum.engine_process.messages import (
    Abort,
    Embed,
    Embedded,
    Events,
    FrameReader,
    Generate,
    GetStats,
    Message,
    Ready,
    Refused,
    Shutdown,
    Start,
    Stats,
    ToEngine,
    decode_to_engine,
    encode,
    failure,
)
from ferrum.errors import FerrumError

READ_BYTES = 1 << 18


class Connection:
    """The engine's end of the socket: messages in through a queue, out by blocking writes."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._inbox: SimpleQueue[ToEngine | FerrumError] = SimpleQueue()
        threading.Thread(target=self._read, name="engine-reader", daemon=True).start()

    def receive(self) -> ToEngine:
        """The next message; waits for it. Raises FerrumError for what is not a message."""
        return _checked(self._inbox.get())

    def received(self) -> ToEngine | None:
        """The next message that is already there."""
        try:
            return _checked(self._inbox.get_nowait())
        except Empty:
            return None

    def send(self, message: Message) -> None:
        try:
            self._sock.sendall(encode(message))
        except OSError:
            os._exit(0)

    def _read(self) -> None:
        frames = FrameReader()
        try:
            while data := self._sock.recv(READ_BYTES):
                for payload in frames.feed(data):
                    self._inbox.put(decode_to_engine(payload))
        except FerrumError as error:
            self._inbox.put(error)
            return
        except OSError:
            pass
        # The client is gone. The main thread may be deep in a step or blocked in a write: nobody waits for either.
        os._exit(0)


def run(sock: socket.socket) -> int:
    """Serve one client on ``sock`` to the end; the exit status."""
    connection = Connection(sock)
    try:
        model = _load(connection.receive())
    except FerrumError as error:
        connection.send(failure(error))
        return 1
    except Exception:
        return _failed(connection, "the engine could not load the pack")
    try:
        connection.send(Ready(model.info))
        gc.collect()
        gc.freeze()  # what was loaded stays: later collections need not look at it
        return _loop(connection, model.engine)
    except FerrumError as error:
        connection.send(failure(error))
        return 1
    except Exception:
        return _failed(connection, "the engine failed")
    finally:
        model.close()


def _load(message: ToEngine) -> LoadedModel:
    if not isinstance(message, Start):
        raise FerrumError("bad-message", "the first message must be Start", "engine socket")
    return load_model(
        message.pack,
        device=message.device,
        trust=message.trust,
        device_options=message.device_options,
        engine_options=message.engine_options,
    )


def _loop(connection: Connection, engine: Engine | Encoder) -> int:
    while True:
        message = connection.received() if engine.has_work else connection.receive()
        while message is not None:
            if isinstance(message, Shutdown):
                return 0
            _handle(connection, engine, message)
            message = connection.received()
        _step(connection, engine)
        for request_id, error in engine.failures:
            connection.send(_refused(request_id, error))
        engine.failures.clear()


def _step(connection: Connection, engine: Engine | Encoder) -> None:
    """Run a step; what it gave, in one message."""
    if isinstance(engine, Encoder):
        if rows := engine.step():
            connection.send(Embedded([(row.request_id, row.values.astype("<f4").tobytes()) for row in rows]))
    elif events := engine.step():
        connection.send(Events(events))


def _add(engine: Engine | Encoder, message: Generate | Embed) -> None:
    """Raises FerrumError."""
    if isinstance(message, Embed) and isinstance(engine, Encoder):
        engine.add(message.request_id, message.prompt, message.dimensions)
    elif isinstance(message, Generate) and isinstance(engine, Engine):
        engine.add(message.request_id, message.prompt, message.params, salt=message.salt)
    else:
        does, not_that = ("embeds", "generates") if isinstance(engine, Encoder) else ("generates", "embeds")
        raise FerrumError("pack-program", f"the model {does} and never {not_that}", "", "use a pack of another model")


def _handle(connection: Connection, engine: Engine | Encoder, message: ToEngine) -> None:
    if isinstance(message, Generate | Embed):
        try:
            _add(engine, message)
        except FerrumError as error:
            connection.send(_refused(message.request_id, error))
    elif isinstance(message, Abort):
        engine.abort(message.request_id, None if message.index < 0 else message.index)
    elif isinstance(message, GetStats):
        connection.send(Stats(message.call, engine.stats()))
    else:
        raise FerrumError("bad-message", "the engine is started already", "engine socket")


def _refused(request_id: str, error: FerrumError) -> Refused:
    return Refused(request_id, error.code, error.what, error.where, error.next_step)


def _failed(connection: Connection, what: str) -> int:
    """Report a fault of ours: details on stderr, a fixed text to the client."""
    traceback.print_exc()
    connection.send(failure(FerrumError("engine-failed", what, "engine process", "see the log of the server")))
    return 1


def _checked(item: ToEngine | FerrumError) -> ToEngine:
    if isinstance(item, FerrumError):
        raise item
    return item


def main(argv: list[str]) -> int:
    if len(argv) != 1 or not argv[0].isdecimal():
        print("error: usage: python -m ferrum.engine_process.main FD · started by ferrum serve", file=sys.stderr)
        return 2
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    return run(socket.socket(fileno=int(argv[0])))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
