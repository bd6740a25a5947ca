"""What is said between the engine's process and its client, and how it is framed.

Frame: 4 bytes little-endian length, then that many bytes of MessagePack. A message is a msgspec struct encoded as an
array whose first element is the tag; unknown tags, wrong types and frames over ``MAX_FRAME`` end the connection.

client → engine: ``Start`` once, then ``Generate`` or ``Embed``, ``Abort``, ``GetStats``, ``Shutdown``.
engine → client: ``Ready`` or ``Failed`` once, then ``Refused`` (also of a request that runs and cannot go on), ``Events`` (all
tokens of one step) or ``Embedded`` (all rows of one), ``Stats``; ``Failed`` at any time means that the engine is gone.
"""

from __future__ import annotations

import struct
from typing import TypeAlias

import msgspec

from ferrum.devices.options import DeviceOptions
from ferrum.engine.options import EngineOptions
from ferrum.engine.params import SamplingParams
from ferrum.engine.reports import EngineInfo, EngineStats, TokenEvent
from ferrum.errors import FerrumError

MAX_FRAME = 64 * 1024 * 1024
HEADER = struct.Struct("<I")


class Message(msgspec.Struct, array_like=True, tag=True, frozen=True, forbid_unknown_fields=True):
    """Base of everything that crosses the socket."""


class Start(Message, tag="start", frozen=True):
    pack: str
    device: str
    trust: bool
    device_options: DeviceOptions
    engine_options: EngineOptions


class Generate(Message, tag="generate", frozen=True):
    request_id: str
    prompt: list[int]
    params: SamplingParams
    salt: str = ""


class Embed(Message, tag="embed", frozen=True):
    """``dimensions`` 0: the whole row."""

    request_id: str
    prompt: list[int]
    dimensions: int = 0


class Abort(Message, tag="abort", frozen=True):
    """``index`` -1: all choices."""

    request_id: str
    index: int = -1


class GetStats(Message, tag="get-stats", frozen=True):
    call: int


class Shutdown(Message, tag="shutdown", frozen=True):
    pass


class Ready(Message, tag="ready", frozen=True):
    info: EngineInfo


class Failed(Message, tag="failed", frozen=True):
    code: str
    what: str
    where: str
    next_step: str


class Refused(Message, tag="refused", frozen=True):
    request_id: str
    code: str
    what: str
    where: str
    next_step: str


class Events(Message, tag="events", frozen=True):
    events: list[TokenEvent]


class Embedded(Message, tag="embedded", frozen=True):
    """(request, float32 in little-endian bytes)"""

    rows: list[tuple[str, bytes]]


class Stats(Message, tag="stats", frozen=True):
    call: int
    stats: EngineStats


ToEngine: TypeAlias = Start | Generate | Embed | Abort | GetStats | Shutdown
FromEngine: TypeAlias = Ready | Failed | Refused | Events | Embedded | Stats

_encoder = msgspec.msgpack.Encoder()
_to_engine: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
_from_engine: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)


def encode(message: Message) -> bytes:
    """One frame. Raises FerrumError when it exceeds ``MAX_FRAME`` or holds a text that UTF-8 cannot express."""
    try:
        payload = _encoder.encode(message)
    except UnicodeEncodeError:
        raise FerrumError("bad-message", "a text holds half of a surrogate pair", "engine socket") from None
    check_length(len(payload))
    return HEADER.pack(len(payload)) + payload


def check_length(length: int) -> int:
    if length > MAX_FRAME:
        raise FerrumError("frame-too-large", f"a message of {length} bytes exceeds {MAX_FRAME}", "engine socket")
    return length


def decode_to_engine(payload: bytes | bytearray | memoryview) -> ToEngine:
    """Raises FerrumError for anything that is not a message."""
    try:
        return _to_engine.decode(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise FerrumError("bad-message", f"not a message: {error}", "engine socket") from None


def decode_from_engine(payload: bytes | bytearray | memoryview) -> FromEngine:
    """Raises FerrumError for anything that is not a message."""
    try:
        return _from_engine.decode(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise FerrumError("bad-message", f"not a message: {error}", "engine socket") from None


class FrameReader:
    """Cuts a byte stream into payloads."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The payloads that ``data`` completes. Raises FerrumError for a frame over ``MAX_FRAME``."""
        buffer = self._buffer
        buffer += data
        payloads: list[bytes] = []
        at = 0
        while len(buffer) - at >= HEADER.size:
            length = check_length(HEADER.unpack_from(buffer, at)[0])
            end = at + HEADER.size + length
            if len(buffer) < end:
                break
            payloads.append(bytes(buffer[at + HEADER.size : end]))
            at = end
        del buffer[:at]
        return payloads


def failure(error: FerrumError) -> Failed:
    return Failed(error.code, error.what, error.where, error.next_step)


def to_error(message: Failed | Refused) -> FerrumError:
    return FerrumError(message.code, message.what, message.where, message.next_step)
