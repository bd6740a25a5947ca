"""ONNX file → graph, through the table in ``onnx_table``: the twin of ``torch_export``.

Initializers go by their names; small ones that are tables become constants; everything is computed in f32, so conversions between
float types disappear. A file that takes a past is read for sequences that have none: what is behind a token is a state later, as
for any other model. What is not in the table is collected, never raised one at a time.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ferrum.graphs.dims import DimFault
from ferrum.graphs.expressions.evaluate import FLOATS, to_float
from ferrum.graphs.expressions.expression import Tensor
from ferrum.graphs.expressions.sources import Constant
from ferrum.graphs.findings import Finding, UnsupportedOps
from ferrum.graphs.frontend import onnx_roles
from ferrum.graphs.frontend.builder import Builder, Unsupported, count_of
from ferrum.graphs.frontend.onnx_held import MAX_SIZES, OF_SIZES, Dims, Empty, Held, Sizes, computed, sizes
from ferrum.graphs.frontend.onnx_table import NEAREST, TABLE
from ferrum.graphs.frontend.uniform import uniform
from ferrum.graphs.ir import Graph, Node, Param, Shape, Value
from ferrum.graphs.onnx.file import OnnxFile, OnnxNode
from ferrum.graphs.onnx.tensors import OnnxTensor
from ferrum.graphs.onnx.wire import Malformed
from ferrum.graphs.op_spec import OpFault
from ferrum.graphs.rewrite import Scope, live
from ferrum.graphs.weights.safetensors import fault

MAX_CONSTANT = 1 << 22  # elements of one table; four of them in all
MAX_ELEMENTS = 1 << 34  # of fixed axes of one value
INTEGERS = {"i64": "i64", "i32": "i32", "bool": "bool"}


def import_onnx(path: Path, name: str = "model") -> Graph:
    """The graph of the model in the file ``path``.

    Raises ``UnsupportedOps`` with everything that has no form in the graph, FerrumError as ``OnnxFile`` does, and
    (checkpoint-corrupt) for nodes that read what none before them makes.
    """
    file = OnnxFile(path)
    try:
        return Importer(file, name).run()
    finally:
        file.close()


class Consequence(Exception):
    """A node that reads a value which no graph can hold; that value's maker has been reported."""


class Importer(Builder):
    """One pass over a file."""

    def __init__(self, file: OnnxFile, name: str) -> None:
        self.file = file
        self.name = name
        self.tables = onnx_roles.tables(file)
        self.findings: list[Finding] = []
        self.values: dict[str, Held] = {}
        self.inputs: list[Value] = []
        self.left = 4 * MAX_CONSTANT
        self.scope = Scope(Graph(name, (), (), (), ()), ())

    def run(self) -> Graph:
        for given in sorted(self.file.inputs, key=lambda value: value.name not in onnx_roles.TOKENS):
            node = OnnxNode("input", "", given.name, (), (given.name,), {})
            self.guarded(node, lambda given=given: onnx_roles.held(self, given, len(self.file.inputs) == 1))  # type: ignore[misc]
        for node in self.file.nodes:
            self.guarded(node, lambda node=node: self.node(node))  # type: ignore[misc]
        wanted = onnx_roles.logits(self.file)
        found = self.values.get(wanted.name) if wanted is not None else None
        if not self.findings and not isinstance(found, str):
            self.findings.append(Finding("a file without an output that depends on tokens", "", "", "an output called logits"))
        if self.findings:
            raise UnsupportedOps(self.findings, f"model {self.name}")
        assert isinstance(found, str)
        nodes, needed = live(self.scope.nodes.values(), (found,))
        params = tuple(param for param in self.scope.params.values() if param.name in needed)
        return Graph(self.name, tuple(self.inputs), params, tuple(nodes), (found,))

    def guarded(self, node: OnnxNode, step: Callable[[], Held | tuple[Held, ...]]) -> None:
        """Enter what ``step`` makes of ``node``; what it cannot do becomes a finding, so that later nodes are looked at too."""
        made: Held | tuple[Held, ...] = None
        self.scope.root = Node(node.op.lower(), (), (Value(node.op.lower(), "f32", ()),), {}, node.name)
        try:
            made = step()
        except Consequence:
            pass
        except Unsupported as error:
            self.findings.append(Finding(error.what, node.name, "", error.nearest))
        except Malformed as error:
            raise fault(self.file.path, f"node {node.name}", str(error)) from None
        except (OpFault, DimFault, ValueError, IndexError, OverflowError) as error:  # inputs that do not fit each other
            self.findings.append(Finding(f"{node.op}: {str(error)[:200]}", node.name, "", ""))
        results = made if isinstance(made, tuple) else (made,)
        for at, name in enumerate(node.outputs):
            if name in self.values or name in self.file.tensors:
                raise fault(self.file.path, f"node {node.name}", f"makes {name[:80]}, which is there already")
            if name:
                self.values[name] = results[at] if at < len(results) else None

    def node(self, node: OnnxNode) -> Held | tuple[Held, ...]:
        key = f"{node.domain}:{node.op}" if node.domain else node.op
        handler = TABLE.get(key)
        if handler is None:
            close = difflib.get_close_matches(key, TABLE, 1, 0.8)
            raise Unsupported(f"{key} of ONNX", NEAREST.get(node.op, close[0] if close else ""))
        if key in OF_SIZES and node.inputs and "" not in node.inputs:
            given = [self.value(name, node) for name in node.inputs]
            if all(isinstance(one, Sizes) for one in given):
                found = computed(node, [one for one in given if isinstance(one, Sizes)])
                if found is not None:
                    return found
        return handler(self, node)

    # what handlers use

    def value(self, name: str, node: OnnxNode) -> Held:
        if name not in self.values:
            if name not in self.file.tensors:
                raise fault(self.file.path, f"node {node.name}", f"reads {name[:80]!r}, which nothing before it makes")
            self.values[name] = self.stored(self.file.tensors[name])
        return self.values[name]

    def given(self, node: OnnxNode, at: int) -> bool:
        """Whether ``node`` has an input number ``at``."""
        return at < len(node.inputs) and bool(node.inputs[at])

    def held(self, node: OnnxNode, at: int) -> Held:
        if not self.given(node, at):
            raise Unsupported(f"{node.op} without its input {at}")
        found = self.value(node.inputs[at], node)
        if found is None:
            raise Consequence
        return found

    def tensor(self, node: OnnxNode, at: int, dtype: str = "") -> str:
        """Input ``at`` as a value of the graph, in ``dtype`` if one is given."""
        found = self.held(node, at)
        if isinstance(found, Empty):
            raise Unsupported(f"{node.op} of a tensor without elements", "parts of one element or more")
        name = self.of_sizes(found) if isinstance(found, Sizes) else found
        assert name is not None
        return self.cast(name, dtype) if dtype else name

    def sizes(self, node: OnnxNode, at: int, what: str) -> Dims:
        found = self.held(node, at)
        if not isinstance(found, Sizes):
            raise Unsupported(f"{what} that depends on values", "one that follows from sizes")
        return found.values

    def numbers(self, node: OnnxNode, at: int, what: str) -> list[int]:
        """Integers that are known."""
        found = self.sizes(node, at, what)
        if not all(isinstance(value, int) for value in found.flat):
            raise Unsupported(f"{what} that depends on the input's size", "constants")
        return [int(value) for value in found.flat]

    def number(self, node: OnnxNode, at: int, what: str) -> float:
        """One number that is known."""
        found = uniform(self.scope, self.tensor(node, at))
        if found is None:
            raise Unsupported(f"{what} that is computed", "a constant")
        return found

    def axes(self, node: OnnxNode, at: int, rank: int) -> list[int]:
        """The axes that a node names in input ``at`` or, in older opsets, in an attribute; the last first."""
        named = self.numbers(node, at, "axes") if self.given(node, at) else node.integers("axes")
        return sorted({self.axis(axis, rank) for axis in named}, reverse=True)

    def axis(self, axis: int, rank: int) -> int:
        if not -rank <= axis < rank:
            raise Unsupported(f"axis {axis} of {rank}")
        return axis % rank

    def emit(self, op: str, *inputs: str, shape: Shape | None = None, dtype: str = "", **attrs: Any) -> str:
        """As every builder, and what is one number everywhere is that number."""
        name = super().emit(op, *inputs, shape=shape, dtype=dtype, **attrs)
        value = self.type(name)
        if math.prod(dim for dim in value.shape if isinstance(dim, int)) > MAX_ELEMENTS:
            raise Unsupported(f"a value of shape {[str(dim) for dim in value.shape]}", f"at most {MAX_ELEMENTS} elements")
        one = uniform(self.scope, name) if op != "full" else None
        return name if one is None else self.constant(one, value.shape, value.dtype)

    # tensors of the file

    def stored(self, tensor: OnnxTensor) -> Held:
        if 0 in tensor.shape:
            return Empty(tensor.shape, "f32" if tensor.dtype in FLOATS else tensor.dtype)
        if tensor.dtype in INTEGERS and math.prod(tensor.shape) <= MAX_SIZES and len(tensor.shape) <= 2:
            return sizes(tensor.array().tolist(), tensor.dtype)
        if tensor.dtype in INTEGERS or math.prod(tensor.shape) == 1 or tensor.name in self.tables:
            return self.constants(tensor)
        if tensor.dtype not in FLOATS:
            raise Unsupported(f"the tensor {tensor.name[:80]} of {tensor.dtype}", "floats, int64 or bool")
        return self.scope.add_param(Param(Value(tensor.name, "f32", tensor.shape), Tensor(tensor.name, tensor.shape)))

    def constants(self, tensor: OnnxTensor) -> str:
        count = math.prod(tensor.shape)
        self.left -= count
        if count > MAX_CONSTANT or self.left < 0:
            raise Unsupported(f"the table {tensor.name[:80]} of {count} elements", f"at most {MAX_CONSTANT}, or computed")
        dtype = INTEGERS.get(tensor.dtype, "f32")
        array = tensor.array()
        data = (to_float(array, tensor.dtype) if dtype == "f32" else array).astype(np.float64)
        return self.numbers_as_value(tensor.name, data, dtype)

    def numbers_as_value(self, name: str, data: np.ndarray[Any, Any], dtype: str) -> str:
        if (data == data.flat[0]).all():
            return self.constant(float(data.flat[0]), data.shape, dtype)
        return self.scope.add_param(Param(Value(name, dtype, data.shape), Constant(data)))

    def of_sizes(self, known: Sizes) -> str:
        """Integers, or sizes one by one, as a value."""
        shape = known.values.shape
        if known.fixed:
            return self.numbers_as_value("numbers", known.values.astype(np.float64), known.dtype)
        rows = [self.constant(float(size), (1,), "i64") if isinstance(size, int) else self.reshape(count_of(self, size), (1,))
                for size in known.values.reshape(-1).tolist()]  # fmt: skip
        value = rows[0] if len(rows) == 1 else self.emit("cat", *rows, axis=0)
        return self.cast(self.reshape(value, shape), known.dtype)
