"""Random JSON schemas of draft 2020-12 over every keyword that is served, and only satisfiable ones."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

Schema = Any
NAMES = ("name", "age", "tags", "a b", "é", "id", "x-y", "value", 'q"q', "n")
PATTERNS = ("^[a-z]{2,5}$", "[0-9]+", "^(yes|no)$", "^\\d{3}-\\d{2}$", "^A.*z$", "^[^x]*$", "\\w+@\\w+", "^$|^b+$")
FORMATS = ("date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
KEYWORDS = frozenset(
    ("type", "enum", "const", "properties", "required", "additionalProperties", "patternProperties", "minProperties")
    + ("maxProperties", "items", "prefixItems", "minItems", "maxItems", "minLength", "maxLength", "pattern", "format")
    + ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "anyOf", "oneOf", "allOf", "$ref", "$defs")
    + ("definitions", "$anchor", "title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment")
    + ("$schema", "$id")
)  # fmt: skip


def schema(seed: int) -> Schema:
    """The schema of a number, always the same."""
    rng = random.Random(seed)
    root = _object(rng, 3) if rng.random() < 0.6 else _any(rng, 3)
    if not isinstance(root, dict):
        return root
    if rng.random() < 0.2:
        root = _with_definitions(rng, root)
    if rng.random() < 0.3:
        root = {"$schema": "https://json-schema.org/draft/2020-12/schema", **root}
    return root


def _any(rng: random.Random, depth: int) -> Schema:
    makers: list[Callable[[random.Random, int], Schema]] = [
        _string,
        _string,
        _number,
        _integer,
        _plain,
        _enum,
        _formatted,
        _nullable,
    ]
    if depth > 0:
        makers += [_object, _object, _array, _array, _any_of, _one_of, _all_of, _map]
    made = rng.choice(makers)(rng, depth - 1)
    if isinstance(made, dict) and rng.random() < 0.25:
        notes: list[Schema] = [{"title": "T"}, {"description": "d"}, {"default": None}, {"examples": [1]}, {"deprecated": True}]
        notes += [{"readOnly": True}, {"writeOnly": False}, {"$comment": "c"}]
        made = {**made, **rng.choice(notes)}
    return made


def _string(rng: random.Random, depth: int) -> Schema:
    made: dict[str, Any] = {"type": "string"}
    kind = rng.random()
    if kind < 0.3:
        made["pattern"] = rng.choice(PATTERNS)
    elif kind < 0.6:
        low = rng.randint(0, 5)
        made["minLength"] = low
        if rng.random() < 0.7:
            made["maxLength"] = low + rng.randint(0, 12)
    return made


def _formatted(rng: random.Random, depth: int) -> Schema:
    return {"type": "string", "format": rng.choice(FORMATS)}


def _number(rng: random.Random, depth: int) -> Schema:
    made: dict[str, Any] = {"type": "number"}
    low = round(rng.uniform(-50, 50), rng.randint(0, 2))
    if rng.random() < 0.5:
        made[rng.choice(("minimum", "exclusiveMinimum"))] = low
    if rng.random() < 0.5:
        made[rng.choice(("maximum", "exclusiveMaximum"))] = low + round(rng.uniform(1, 100), 1)
    return made


def _integer(rng: random.Random, depth: int) -> Schema:
    made: dict[str, Any] = {"type": "integer"}
    low = rng.randint(-1000, 1000)
    if rng.random() < 0.5:
        made[rng.choice(("minimum", "exclusiveMinimum"))] = low
    if rng.random() < 0.5:
        made[rng.choice(("maximum", "exclusiveMaximum"))] = low + rng.randint(20, 500)
    if rng.random() < 0.2:
        made["multipleOf"] = rng.choice((2, 3, 5, 10))
    return made


def _plain(rng: random.Random, depth: int) -> Schema:
    return rng.choice(({"type": "boolean"}, {"type": "null"}, {"type": ["integer", "boolean"]}, {"const": {"k": [1, "x"]}}))


def _enum(rng: random.Random, depth: int) -> Schema:
    values = ["red", "green", "", 'q"\\', "é\n", 1, -2.5, None, True, {"a": 1}, [1, 2]]
    return {"enum": rng.sample(values, rng.randint(1, 5))} if rng.random() < 0.8 else {"const": rng.choice(values)}


def _nullable(rng: random.Random, depth: int) -> Schema:
    return {"type": [rng.choice(("string", "integer")), "null"]}


def _object(rng: random.Random, depth: int) -> Schema:
    names = rng.sample(NAMES, rng.randint(0, 5))
    made: dict[str, Any] = {"type": "object", "properties": {name: _any(rng, depth) for name in names}}
    made["required"] = [name for name in names if rng.random() < 0.6]
    kind = rng.random()
    if kind < 0.6:
        made["additionalProperties"] = False
    elif kind < 0.75:
        made["additionalProperties"] = _any(rng, 0)
    if rng.random() < 0.15:
        made["patternProperties"] = {"^z": _any(rng, 0)}
    return made


def _map(rng: random.Random, depth: int) -> Schema:
    made: dict[str, Any] = {"type": "object", "additionalProperties": _any(rng, 0)}
    low = rng.randint(0, 1)
    if low:
        made["minProperties"] = low
    if rng.random() < 0.5:
        made["maxProperties"] = low + rng.randint(0, 3)
    return made


def _array(rng: random.Random, depth: int) -> Schema:
    made: dict[str, Any] = {"type": "array"}
    if rng.random() < 0.25:
        made["prefixItems"] = [_any(rng, depth) for _ in range(rng.randint(1, 3))]
        made["minItems"] = len(made["prefixItems"]) if rng.random() < 0.5 else 0
        made["items"] = rng.choice((False, _any(rng, 0)))
        return made
    made["items"] = _any(rng, depth)
    low = rng.randint(0, 3)
    if low:
        made["minItems"] = low
    if rng.random() < 0.6:
        made["maxItems"] = low + rng.randint(0, 4)
    return made


def _any_of(rng: random.Random, depth: int) -> Schema:
    return {"anyOf": [_any(rng, depth) for _ in range(rng.randint(2, 3))]}


def _one_of(rng: random.Random, depth: int) -> Schema:
    """Options that exclude each other: by type, or by a property that tells them apart, as unions of classes have it."""
    if rng.random() < 0.5:
        return {"oneOf": [_integer(rng, 0), _string(rng, 0), {"type": "null"}]}
    options = []
    for kind in ("cat", "dog"):
        properties = {"kind": {"const": kind}, **{n: _any(rng, 0) for n in rng.sample(NAMES, 2)}}
        options.append({"type": "object", "properties": properties, "required": ["kind"], "additionalProperties": False})
    return {"oneOf": options}


def _all_of(rng: random.Random, depth: int) -> Schema:
    if rng.random() < 0.5:
        return {"allOf": [{"type": "string", "minLength": 2}, {"type": "string", "maxLength": 9}]}
    first, second = rng.sample(NAMES, 2)
    return {
        "allOf": [
            {"type": "object", "properties": {first: _any(rng, 0)}, "required": [first]},
            {"type": "object", "properties": {second: _any(rng, 0)}, "required": [second]},
        ]
    }


def _with_definitions(rng: random.Random, root: dict[str, Any]) -> Schema:
    """``root`` with a property that refers to a definition: a plain one, one by its anchor, a list or a tree of itself."""
    place = rng.choice(("$defs", "definitions"))
    node: Schema = {
        "type": "object",
        "properties": {"v": _any(rng, 0), "next": {"anyOf": [{"$ref": f"#/{place}/node"}, {"type": "null"}]}},
        "required": ["v", "next"],
        "additionalProperties": False,
    }
    definitions = {"node": node, "plain": _any(rng, 0) or {}, "named": {"$anchor": "here", "type": "integer"}}
    reference = rng.choice((f"#/{place}/node", f"#/{place}/plain", "#here"))
    return {
        "$id": "https://example.com/schema",
        place: definitions,
        "type": "object",
        "properties": {"ref": {"$ref": reference}, "root": {k: v for k, v in root.items() if k != "$schema"}},
        "required": ["ref"],
        "additionalProperties": False,
    }
