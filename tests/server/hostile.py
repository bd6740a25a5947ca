"""Requests that would cost a server much if it let them: large, deep, odd, and cheap to send."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

CHAT, TEXTS = "/v1/chat/completions", "/v1/completions"
MEGABYTE = 1 << 20


def chat(**fields: Any) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": "x"}], "max_tokens": 4, **fields}).encode()


def _keys(size: int) -> range:
    return range(min(260_000, size // 12))


# by name: from how many bytes a body may have to its route and the body
HOSTILE: dict[str, Callable[[int], tuple[str, bytes]]] = {
    "a name of megabytes": lambda size: (TEXTS, b'{"' + b"a" * size + b'":1}'),
    "names of megabytes in a message": lambda size: (CHAT, b'{"messages":[{"role":"' + b"r" * size + b'","content":"x"}]}'),
    "a map of many names": lambda size: (TEXTS, b'{"logit_bias":{' + b",".join(b'"%d":1' % i for i in _keys(size)) + b"}}"),
    "unknown names": lambda size: (TEXTS, b"{" + b",".join(b'"k%d":1' % i for i in _keys(size)) + b"}"),
    "numbers of a thousand digits": lambda size: (TEXTS, b'{"prompt":[' + b",".join([b"9" * 1000] * (size // 1001)) + b"]}"),
    "a number of megabytes": lambda size: (TEXTS, b'{"seed":' + b"1" * size + b"}"),
    "a fraction of megabytes": lambda size: (TEXTS, b'{"temperature":0.' + b"1" * size + b"}"),
    "texts without number": lambda size: (CHAT, b'{"stop":[' + b",".join([b'"\\\\"'] * (size // 5)) + b"]}"),
    "only quotes": lambda size: (TEXTS, b'"' * size),
    "only brackets": lambda size: (CHAT, b"[" * size),
    "arrays in arrays": lambda size: (CHAT, b'{"tools":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "objects in objects": lambda size: (CHAT, b'{"metadata":' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}"),
    "blanks": lambda size: (TEXTS, b" " * size + b'{"prompt":"x"}'),
    "escapes": lambda size: (TEXTS, b'{"prompt":"' + b"\\u00e9" * (size // 6) + b'"}'),
    "half a character": lambda size: (CHAT, chat().replace(b'"x"', b'"\\ud800"')),
    "bytes that are no text": lambda size: (TEXTS, b'{"prompt":"' + b"\xff" * (size // 8) + b'"}'),
    "a long prompt": lambda size: (TEXTS, json.dumps({"prompt": "word " * (size // 5), "max_tokens": 1}).encode()),
    "a long prompt of emoji": lambda size: ("/tokenize", json.dumps({"prompt": "\N{GRINNING FACE}" * (size // 12)}).encode()),
    "a long word": lambda size: ("/tokenize", json.dumps({"prompt": "a" * min(size, 60_000)}).encode()),
    "blanks to tokenize": lambda size: (
        "/tokenize",
        json.dumps({"content": " " * min(size, 60_000), "with_pieces": True}).encode(),
    ),
    "many tokens": lambda size: ("/detokenize", b'{"tokens":[' + b",".join([b"300"] * min(262_000, size // 4)) + b"]}"),
    "many prompts": lambda size: (TEXTS, json.dumps({"prompt": ["x"] * 60_000}).encode()),
    "many messages": lambda size: (CHAT, chat(messages=[{"role": "user", "content": "x"}] * 4000)),
    "many parts": lambda size: (CHAT, chat(messages=[{"role": "user", "content": [{"type": "text", "text": "x"}] * 1000}] * 15)),
    "many tools": lambda size: (CHAT, chat(tools=[_tool(i) for i in range(128)], tool_choice="auto")),
    "many items": lambda size: ("/v1/responses", json.dumps({"input": [{"role": "user", "content": "x"}] * 4000}).encode()),
    "many blocks": lambda size: ("/v1/messages", json.dumps({"max_tokens": 1, "messages": [_turn(10_000)]}).encode()),
    "many stops": lambda size: (CHAT, chat(stop=["a" * 1000] * 4000)),
    "many choices with probabilities": lambda size: (
        CHAT,
        chat(n=64, logprobs=True, top_logprobs=20, stream=True, max_tokens=12),
    ),
    "choices beyond all bounds": lambda size: (TEXTS, json.dumps({"prompt": ["a"] * 64, "n": 128, "max_tokens": 10**6}).encode()),
    "a token that there is not": lambda size: (TEXTS, b'{"prompt":[999999999]}'),
    "a template's worst": lambda size: (
        CHAT,
        chat(messages=[{"role": "assistant", "content": None, "tool_calls": [_call(size)]}]),
    ),
    "an upload without an end": lambda size: ("/v1/files", b"--x\r\n" * (size // 5)),
}


def _tool(i: int) -> dict[str, Any]:
    properties = {f"p{j}": {"type": "string", "description": "x" * 20} for j in range(40)}
    return {"type": "function", "function": {"name": f"f{i}", "parameters": {"type": "object", "properties": properties}}}


def _turn(blocks: int) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": "x"}] * blocks}


def _call(size: int) -> dict[str, Any]:
    return {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{" * min(size, 100_000)}}
