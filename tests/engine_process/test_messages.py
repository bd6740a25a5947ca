"""Frames: cut anywhere, capped, and never anything but our messages."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferrum.devices.options import DeviceOptions
from ferrum.engine.options import EngineOptions
from ferrum.engine.params import SamplingParams
from ferrum.engine.reports import TokenEvent
from ferrum.engine_process import messages
from ferrum.engine_process.messages import (
    Abort,
    Events,
    Failed,
    FrameReader,
    Generate,
    GetStats,
    Message,
    Refused,
    Shutdown,
    Start,
    decode_from_engine,
    decode_to_engine,
    encode,
)
from ferrum.errors import FerrumError

TO_ENGINE: list[Message] = [
    Start("x.fpk", "cpu", False, DeviceOptions(max_seqs=3), EngineOptions(max_queue=5)),
    Generate("a", [1, 2, 300000], SamplingParams(stop=["x"], logit_bias={7: -1.5}, seed=(1 << 64) - 1), "salt"),
    Abort("a", 2),
    GetStats(7),
    Shutdown(),
]
FROM_ENGINE: list[Message] = [
    Events([TokenEvent("a", 0, 5, "stop", -1.25, ((5, -1.25), (6, -2.0)), 4), TokenEvent("b", 1, 6)]),
    Refused("a", "code", "what", "where", "next"),
    Failed("code", "what", "where", "next"),
]


@given(st.data())
def test_frames_survive_any_cut(data: st.DataObject) -> None:
    stream = b"".join(encode(m) for m in TO_ENGINE)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    reader = FrameReader()
    payloads = [p for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True) for p in reader.feed(stream[a:b])]
    assert [decode_to_engine(p) for p in payloads] == TO_ENGINE


def test_messages_of_the_engine_survive() -> None:
    payloads = FrameReader().feed(b"".join(encode(m) for m in FROM_ENGINE))
    assert [decode_from_engine(p) for p in payloads] == FROM_ENGINE


def test_a_frame_over_the_cap_is_refused_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FerrumError, match="exceeds"):
        FrameReader().feed(struct.pack("<I", messages.MAX_FRAME + 1))
    monkeypatch.setattr(messages, "MAX_FRAME", 100)
    with pytest.raises(FerrumError, match="exceeds"):
        encode(Generate("a", [1] * 200, SamplingParams()))


@given(st.one_of(st.binary(max_size=60), st.sampled_from([encode(m)[4:] for m in TO_ENGINE + FROM_ENGINE])), st.data())
def test_anything_else_is_an_error_and_no_crash(payload: bytes, data: st.DataObject) -> None:
    if payload:
        at = data.draw(st.integers(0, len(payload) - 1))
        payload = payload[:at] + bytes([data.draw(st.integers(0, 255))]) + payload[at + 1 :]
    for decode in (decode_to_engine, decode_from_engine):
        try:
            decode(payload)
        except FerrumError as error:
            assert error.code in ("bad-message", "invalid-parameter", "invalid-option")


def test_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(FerrumError, match="surrogate"):
        encode(Generate("a", [1], SamplingParams(), "\ud800"))


def test_messages_of_the_wrong_side_are_refused() -> None:
    with pytest.raises(FerrumError):
        decode_to_engine(encode(FROM_ENGINE[0])[4:])
    with pytest.raises(FerrumError):
        decode_from_engine(encode(Shutdown())[4:])
