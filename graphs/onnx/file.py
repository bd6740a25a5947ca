"""One ONNX file: its nodes, inputs, outputs and tensors, checked completely before anything else is touched."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ferrum.errors import FerrumError
from ferrum.graphs.onnx.schema import DTYPES, MESSAGES
from ferrum.graphs.onnx.tensors import Files, Mapped, OnnxTensor
from ferrum.graphs.onnx.wire import Malformed, Message, Reader, Span
from ferrum.graphs.weights.safetensors import fault

SUFFIX = ".onnx"
OPSETS = range(17, 24)
MAX_VALUES = 1 << 18  # parts of a file, and one more for each
BYTES_PER_VALUE = 16
_VALUES = ("t", "f", "i", "s", "floats", "ints", "strings", "g", "graphs")
_HIDDEN = re.compile(r"[^\x21-\x7e]")
MAIN_DOMAINS = ("", "ai.onnx")

Attributes = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class OnnxNode:
    """``domain`` is empty for ONNX's own ops. ``attributes``: ints, floats, bytes, lists of them, tensors; graphs as spans."""

    op: str
    domain: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Attributes

    def integer(self, key: str, default: int = 0) -> int:
        value = self.attributes.get(key, default)
        if not isinstance(value, int):
            raise Malformed(f"has the {key} {str(value)[:40]}, not an integer")
        return value

    def floating(self, key: str, default: float) -> float:
        value = self.attributes.get(key, default)
        if not isinstance(value, float):
            raise Malformed(f"has the {key} {str(value)[:40]}, not a number")
        return value

    def text(self, key: str, default: str = "") -> str:
        value = self.attributes.get(key, default.encode())
        if not isinstance(value, bytes):
            raise Malformed(f"has the {key} {str(value)[:40]}, not a text")
        return value.decode("utf-8", "replace")

    def integers(self, key: str) -> list[int]:
        value = self.attributes.get(key, [])
        if not isinstance(value, list) or not all(isinstance(one, int) for one in value):
            raise Malformed(f"has the {key} {str(value)[:40]}, not integers")
        return value


@dataclass(frozen=True, slots=True)
class OnnxValue:
    """An input or output of the graph. A dim is a size, or a name; ``dtype`` is empty for what is no tensor."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class OnnxFile:
    """``tensors`` by name: initializers, and what nodes called Constant hold. ``files``: the maps that they lie in."""

    def __init__(self, path: Path) -> None:
        """Map and check ``path``. Raises FerrumError: checkpoint-corrupt, checkpoint-unreadable, bad-path, format-unsupported."""
        self.path = path
        self._files = Files(Mapped(path))
        self._field = "the file"
        self.tensors: dict[str, OnnxTensor] = {}
        try:
            self._parse()
        except Malformed as error:
            self.close()
            raise fault(path, self._field, str(error)) from None
        except BaseException:
            self.close()
            raise

    @property
    def files(self) -> tuple[Mapped, ...]:
        return self._files.every()

    def close(self) -> None:
        for file in self.files:
            with contextlib.suppress(BufferError):  # somebody holds a view of it
                file.map.close()

    def _parse(self) -> None:
        main = self._files.main
        model = Reader(main.map, MESSAGES, MAX_VALUES + main.size // BYTES_PER_VALUE).read("model", Span(0, main.size))
        graph: Message = model.get("graph", {})
        if "graph" not in model or not model.get("opsets"):
            raise Malformed("has no graph, or no opset: it is not an ONNX model")
        self._check_opsets(model["opsets"])
        if graph.get("sparse"):
            raise FerrumError("format-unsupported", "sparse tensors are not read", self.path.name, "export it with dense weights")
        for message in graph.get("tensors", ()):
            self._add_tensor(message, message.get("name", ""))
        self.inputs = [v for message in graph.get("inputs", ()) if (v := self._value(message)).name not in self.tensors]
        self.outputs = [self._value(message) for message in graph.get("outputs", ())]
        self.nodes = self._nodes(graph.get("nodes", ()))

    def _check_opsets(self, given: Sequence[Message]) -> None:
        versions = [one.get("version", 0) for one in given if one.get("domain", "") in MAIN_DOMAINS]
        self.opset = versions[0] if versions else 0
        if self.opset not in OPSETS:
            what = f"it uses opset {self.opset} of ONNX (read: {OPSETS[0]} to {OPSETS[-1]})"
            raise FerrumError("format-unsupported", what, self.path.name, f"export it with opset {OPSETS[-1]}")

    def _add_tensor(self, message: Message, name: str) -> None:
        self._field = f"tensor {name[:80]}"
        if name in self.tensors:
            raise Malformed("is there twice")
        tensor = self.tensors[name] = self._files.tensor(message, name)
        if tensor.file is not None and tensor.info is not None and tensor.values is None:
            tensor.file.tensors[name] = tensor.info

    def _nodes(self, messages: Sequence[Message]) -> list[OnnxNode]:
        nodes = []
        for number, message in enumerate(messages):
            self._field = f"node {number}"
            node = self._node(message, number)
            value = node.attributes.get("value")
            if node.op == "Constant" and not node.domain and isinstance(value, dict):
                self._add_tensor(value, node.outputs[0] if node.outputs else "")
            else:
                nodes.append(node)
        return nodes

    def _node(self, message: Message, number: int) -> OnnxNode:
        op, domain = message.get("op", ""), message.get("domain", "")
        inputs, outputs = message.get("inputs", ()), message.get("outputs", ())
        attributes = {a["name"]: value_of(a) for a in message.get("attributes", ()) if a.get("name")}
        domain = "" if domain in MAIN_DOMAINS else domain
        if op != "Constant" and any(isinstance(value, dict) for value in attributes.values()):
            tensors = {name: value for name, value in attributes.items() if isinstance(value, dict)}
            attributes |= {name: self._files.tensor(value, name) for name, value in tensors.items()}
        name = message.get("name", "") or f"{op}.{number}"
        return OnnxNode(shown(op), shown(domain), shown(name), tuple(inputs), tuple(outputs), attributes)

    def _value(self, message: Message) -> OnnxValue:
        name, kind = message.get("name", ""), message.get("type", {}).get("tensor")
        if kind is None:
            return OnnxValue(name, "", ())
        _, dtype, _ = DTYPES.get(kind.get("dtype", 0), ("", "", 0))
        dims = kind.get("shape", {}).get("dims", ())
        return OnnxValue(name, dtype, tuple(dim["size"] if "size" in dim else dim.get("name", "") for dim in dims))


def value_of(attribute: Message) -> Any:
    """An attribute's value, whichever kind it is; an empty list for one that has none."""
    found = next((attribute[key] for key in _VALUES if key in attribute), None)
    if found is None:  # protobuf leaves zeros out
        return {1: 0.0, 2: 0, 3: b""}.get(attribute.get("type", 0), [])
    return found


def shown(text: str) -> str:
    """A name from a file as one word that can stand in a line."""
    return _HIDDEN.sub("_", text[:200])
