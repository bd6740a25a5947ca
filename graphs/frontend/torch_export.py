"""torch module or ExportedProgram → graph, through ``torch.export`` on the meta device and the table in ``aten_table``.

Parameters get their checkpoint's names; small buffers become constants; everything is computed in f32, so conversions
between float types disappear. What is not in the table is collected, never raised one at a time.
"""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.export import ExportedProgram

from ferrum.errors import FerrumError
from ferrum.graphs.dims import Dim
from ferrum.graphs.expressions.expression import Expr, Tensor
from ferrum.graphs.expressions.sources import Constant
from ferrum.graphs.findings import Finding, UnsupportedOps
from ferrum.graphs.frontend.aten_complex import COMPLEX, is_complex
from ferrum.graphs.frontend.aten_table import IGNORED, NEAREST, TABLE
from ferrum.graphs.frontend.builder import Builder, Unsupported
from ferrum.graphs.frontend.sizes import NoSize, size_of
from ferrum.graphs.ir import Graph, Node, Param, Shape, Value
from ferrum.graphs.op_spec import OpFault
from ferrum.graphs.rewrite import Scope, live

MAX_CONSTANT = 1 << 22  # elements: a mask of 2,048 places; larger tables belong into the checkpoint
UNBOUNDED = 1 << 30  # tokens: torch bounds sizes only by what an index can be
TRACE_SHAPE = (2, 8)  # sizes of batch and seq while tracing; any two different numbers above 1
FRAME = re.compile(r'File "([^"]+)", line (\d+)')
DTYPES = {torch.int64: "i64", torch.int32: "i32", torch.bool: "bool"}

Names = Callable[[str], str | Expr]


def import_module(
    module: torch.nn.Module, config: object = None, name: str = "model", checkpoint_name: Names | None = None
) -> Graph:
    """The graph of ``module(tokens: int64 [batch, seq]) -> logits [batch, seq, vocab]``, usually built on the meta device.

    ``checkpoint_name`` maps a parameter's qualified name to the checkpoint's, or to an expression over its tensors; without it
    both have the same. Buffers take their values from ``module.constants()`` or from their own data.
    Raises ``UnsupportedOps`` with everything that has no form in the graph, ``FerrumError`` (export-failed) when
    ``torch.export`` cannot trace. ``config`` is not needed and only accepted for symmetry with the other frontends.
    """
    parameters = list(module.named_parameters(remove_duplicate=False))
    device = parameters[0][1].device if parameters else torch.device("cpu")
    tokens = torch.zeros(TRACE_SHAPE, dtype=torch.int64, device=device)
    try:
        with warnings.catch_warnings(), torch.no_grad(), device:  # factory calls in forward() follow the parameters
            warnings.simplefilter("ignore")
            dims = {0: torch.export.Dim("batch"), 1: torch.export.Dim("seq")}
            program = torch.export.export(module.eval(), (tokens,), dynamic_shapes=(dims,), strict=False)
    except Exception as error:  # torch.export raises many types; the first line says which construct it was
        lines = [line for line in str(error).splitlines() if line.strip()]
        what = f"torch.export: {type(error).__name__}: {lines[0] if lines else ''}"
        raise FerrumError(
            "export-failed", what, f"model {name}", "write the forward pass without control flow on values"
        ) from error
    constants = module.constants() if hasattr(module, "constants") else {}
    return import_program(program, name, checkpoint_name, constants, first_names(parameters))


def first_names(parameters: list[tuple[str, Any]]) -> dict[str, str]:
    """Tied parameters go by their first name."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in parameters}


def import_program(
    program: ExportedProgram,
    name: str = "model",
    checkpoint_name: Names | None = None,
    constants: Mapping[str, Any] | None = None,
    tied: Mapping[str, str] | None = None,
    longest: int = 0,
) -> Graph:
    """The graph of an exported program with one int64 input [batch, seq], both dynamic, and one output, for sequences of up to
    ``longest`` tokens (0: any that the program takes). Errors as above."""
    tied = first_names(list(program.state_dict.items())) if tied is None else tied
    importer = Importer(program, name, checkpoint_name, constants or {}, tied, longest)
    graph = first = importer.run()
    if importer.findings:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            plain = program.run_decompositions(decompositions())  # functional form: in-place ops are gone
        second = Importer(plain, name, checkpoint_name, constants or {}, tied, longest)
        graph = second.run()
        if second.findings:
            left = {finding.what for finding in second.findings}
            findings = [f for f in importer.findings if f.what in left] or second.findings  # without what torch takes apart
            raise UnsupportedOps(findings, f"model {name}", first if importer.symbols and first.outputs else None)
    return graph


def most_tokens(program: ExportedProgram) -> int:
    """The longest sequence for which the trace holds: models branch on lengths. 0: any."""
    tokens = next(node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs)
    size = tokens.meta["val"].shape[1]
    if isinstance(size, int):
        return 0
    known = program.range_constraints.get(size.node.expr)
    return int(known.upper) if known is not None and known.upper.is_Integer and known.upper < UNBOUNDED else 0


def refuse_longer(program: ExportedProgram, longest: int, name: str) -> None:
    """Raises ``UnsupportedOps`` for a trace that does not hold for sequences of ``longest`` tokens."""
    if 0 < (most := most_tokens(program)) < longest:
        what = f"another computation for sequences of more than {most} tokens"
        raise UnsupportedOps([Finding(what, "", "", f"--max-model-len {most}")], f"model {name}")


def decompositions() -> dict[Any, Callable[..., Any]]:
    """torch's own decompositions of the ops that the table lacks."""
    known = {*TABLE, *COMPLEX}
    return {op: function for op, function in torch.export.default_decompositions().items() if str(op) not in known}


def is_empty(node: fx.Node) -> bool:
    """A tensor without elements; only a ``cat`` reads one, and does as if it were not there."""
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and any(isinstance(dim, int) and dim == 0 for dim in value.shape)


def needed_nodes(graph: fx.Graph) -> set[fx.Node]:
    """Those that the output depends on, and what writes into a tensor: what a model computes for another caller is no matter."""
    found: set[fx.Node] = set()
    waiting = [node for node in graph.nodes if node.op == "output" or writes(node)]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += node.all_input_nodes
    return found


def writes(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


class Consequence(Unsupported):
    """A node that reads a value which no graph can hold; that value's maker has been reported."""


class Importer(Builder):
    """One pass over an exported program."""

    def __init__(
        self,
        program: ExportedProgram,
        name: str,
        checkpoint_name: Names | None,
        constants: Mapping[str, Any],
        tied: Mapping[str, str],
        longest: int = 0,
    ) -> None:
        self.program = program
        self.name = name
        self.checkpoint_name = checkpoint_name
        self.constants = constants
        self.tied = tied
        self.findings: list[Finding] = []
        self.names: dict[fx.Node, str | tuple[str, ...]] = {}
        self.symbols: dict[str, str] = {}
        self.most = {"seq": bound} if (bound := longest or most_tokens(program)) else {}
        self.inputs: list[Value] = []
        self.scope = Scope(Graph(name, (), (), (), ()), ())

    def run(self) -> Graph:
        signature = self.program.graph_signature
        parameters = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
        placeholders = [node for node in self.program.graph.nodes if node.op == "placeholder"]
        for node in placeholders:
            if node.name in signature.user_inputs and isinstance(node.meta.get("val"), torch.Tensor):
                self.add_input(node)
        for node in placeholders:
            if node.name in parameters and node.users:
                self.guarded(
                    node,
                    lambda node: self.add_parameter(node, parameters[node.name], node.name in signature.inputs_to_parameters),
                )
        needed = needed_nodes(self.program.graph)
        for node in self.program.graph.nodes:
            if node not in needed:
                continue
            if node.op == "call_function" and self.target(node) not in IGNORED and self.has_tensor(node) and not is_empty(node):
                self.guarded(node, self.call)
            elif node.op not in ("call_function", "placeholder", "output"):
                self.report(node, f"{node.op} node", "")
        return self.finish()

    def finish(self) -> Graph:
        output = next(node for node in self.program.graph.nodes if node.op == "output")
        results = [node for node in output.args[0] if isinstance(node, fx.Node)]
        if len(results) != 1:
            self.findings.append(Finding(f"{len(results)} outputs", "", "", "one output, the logits"))
        outputs = tuple(name for node in results[:1] if isinstance(name := self.names.get(node), str))
        nodes, needed = live(self.scope.nodes.values(), outputs)
        params = tuple(p for p in self.scope.params.values() if p.name in needed)
        return Graph(self.name, tuple(self.inputs), params, tuple(nodes), outputs)

    def guarded(self, node: fx.Node, step: Callable[[fx.Node], None]) -> None:
        """Run ``step``; what it cannot do becomes a finding and an opaque value, so that later nodes are looked at too."""
        try:
            step(node)
        except Consequence:
            if any(map(is_empty, node.all_input_nodes)):
                self.report(node, f"{self.target(node)} of a tensor without elements", "parts of one element or more")
            else:
                self.replace(node)
        except Unsupported as fault:
            self.report(node, fault.what, fault.nearest)
        except OpFault as fault:
            self.report(node, f"{self.target(node)}: {fault}", "")

    def report(self, node: fx.Node, what: str, nearest: str) -> None:
        self.findings.append(Finding(what, self.module_path(node), self.source_line(node), nearest))
        self.replace(node)

    def replace(self, node: fx.Node) -> None:
        """Let inputs stand for what ``node`` makes."""
        values = node.meta.get("val")
        try:
            if isinstance(values, torch.Tensor):
                self.names[node] = self.opaque(values)
            elif isinstance(values, list | tuple):
                self.names[node] = tuple(self.opaque(v) for v in values)
        except Unsupported:
            return  # a value that no graph can hold; see Consequence

    def opaque(self, value: Any) -> str:
        """An input that stands for what could not be imported."""
        name = self.scope.fresh_name("unsupported")
        self.inputs.append(Value(name, self.dtype_of(value), self.shape_of(value)))
        self.scope.types[name] = self.inputs[-1]
        return name

    def add_input(self, node: fx.Node) -> None:
        value = node.meta["val"]
        shape = tuple(value.shape)
        if (
            self.symbols
            or len(shape) != 2
            or value.dtype not in (torch.int64, torch.int32)
            or any(isinstance(d, int) for d in shape)
        ):
            what = f"input {node.name} of {value.dtype} {[str(d) for d in shape]}"
            self.report(node, what, "one integer input [batch, seq], both dynamic (torch.export with dynamic_shapes)")
            return
        batch, seq = (d.node.expr for d in shape)
        self.symbols = {str(batch): "batch", str(seq): "seq"}
        self.inputs.append(Value("tokens", DTYPES[value.dtype], ("batch", "seq")))
        self.scope.types["tokens"] = self.inputs[0]
        self.scope.taken.add("tokens")
        self.names[node] = "tokens"

    def add_parameter(self, node: fx.Node, target: str, trained: bool) -> None:
        shape = self.shape_of(node.meta["val"])
        if not all(isinstance(dim, int) for dim in shape):
            raise Unsupported(f"parameter {target} without a fixed shape", "a fixed shape")
        if trained:
            name = self.tied.get(target, target)
            if self.checkpoint_name is not None:
                try:
                    found = self.checkpoint_name(name)
                except KeyError:
                    raise Unsupported(f"parameter {target} without a checkpoint name", "a line in the family's record") from None
                if not isinstance(found, str):
                    self.names[node] = self.scope.add_param(Param(Value(name, "f32", shape), found))
                    return
                name = found
            self.names[node] = self.scope.add_param(Param(Value(name, "f32", shape), Tensor(name, tuple(map(int, shape)))))
            return
        data = self.buffer(target)
        if data is None:
            raise Unsupported(f"buffer {target} without data on the meta device", "constants() of the module")
        if data.size > MAX_CONSTANT:
            raise Unsupported(f"buffer {target} of {data.size} elements", f"at most {MAX_CONSTANT}, or computed in forward()")
        if data.shape != shape:
            raise Unsupported(f"buffer {target} of {list(shape)}, but constants() gives {list(data.shape)}", "one shape")
        if data.size > 1 and (data == data.flat[0]).all():
            self.names[node] = self.constant(float(data.flat[0]), shape, self.dtype(node))
            return
        self.names[node] = self.scope.add_param(Param(Value(target, self.dtype(node), shape), Constant(data)))

    def buffer(self, target: str) -> np.ndarray[Any, Any] | None:
        if target in self.constants:
            return np.asarray(self.constants[target])
        for table in (self.program.constants, self.program.state_dict):
            tensor = table.get(target)
            if isinstance(tensor, torch.Tensor) and tensor.device.type != "meta" and type(tensor).__name__ != "FakeTensor":
                return tensor.detach().to(torch.float64).cpu().numpy()
        return None

    def call(self, node: fx.Node) -> None:
        target = self.target(node)
        pairs = is_complex(node) or any(map(is_complex, node.all_input_nodes))
        handler = (COMPLEX if pairs else TABLE).get(target)
        plain = target.split(".")[1] if target.count(".") >= 1 else target
        if handler is None:
            close = difflib.get_close_matches(target, TABLE, 1, 0.75) if not pairs else []
            raise Unsupported(f"{target} of complex numbers" if pairs else target, NEAREST.get(plain, close[0] if close else ""))
        origin = " ".join(part for part in (self.module_path(node), self.source_line(node)) if part)
        self.scope.root = Node(plain, (), (Value(plain, "f32", ()),), {}, origin)
        self.names[node] = result = handler(self, node)
        if isinstance(result, str) and self.type(result).shape != self.shape(node):
            raise Unsupported(f"{target} of shape {list(self.shape(node))}", "")

    # what handlers use

    def tensor(self, arg: Any) -> str:
        if not isinstance(arg, fx.Node):
            raise Unsupported(f"an argument of type {type(arg).__name__} where a tensor is needed")
        name = self.value(arg)
        if not isinstance(name, str):
            raise Unsupported(f"the value {arg.name}, which is not one tensor")
        return name

    def value(self, arg: fx.Node) -> str | tuple[str, ...]:
        """The value that ``arg`` makes, or all of them."""
        name = self.names.get(arg)
        if name is None:
            raise Consequence(arg.name)
        return name

    def axis(self, arg: Any, axis: int) -> int:
        return axis % len(self.type(self.tensor(arg)).shape)

    def dtype(self, node: fx.Node) -> str:
        return self.dtype_of(node.meta["val"])

    def dtype_of(self, value: Any) -> str:
        if value.dtype.is_floating_point or value.dtype.is_complex:
            return "f32"
        if value.dtype not in DTYPES:
            raise Unsupported(f"a tensor of {value.dtype}", "float32, int64 or bool")
        return DTYPES[value.dtype]

    def promoted(self, a: fx.Node, b: fx.Node) -> str:
        dtypes = (self.dtype(a), self.dtype(b))
        return next(d for d in ("f32", "i64", "i32", "bool") if d in dtypes)

    def shape(self, node: fx.Node) -> Shape:
        return self.shape_of(node.meta["val"])

    def shape_of(self, value: Any) -> Shape:
        pair = (2,) if value.dtype.is_complex else ()
        return (*(self.dim(d) for d in value.shape), *pair)

    def dim(self, dim: Any) -> Dim:
        if isinstance(dim, int):
            if dim < 1:
                raise Unsupported("a tensor without elements", "parts of one element or more")
            return dim
        try:
            return size_of(dim.node.expr, self.symbols, self.most)
        except NoSize:
            text = str(dim.node.expr)
            raise Unsupported(f"a tensor with an axis of {text} elements", "axes of batch, seq or a fixed size") from None

    # where a node comes from

    def has_tensor(self, node: fx.Node) -> bool:
        value = node.meta.get("val")
        return isinstance(value, torch.Tensor) or (
            isinstance(value, list | tuple) and any(isinstance(v, torch.Tensor) for v in value)
        )

    def is_empty(self, node: fx.Node) -> bool:
        return is_empty(node)

    def target(self, node: fx.Node) -> str:
        text = str(node.target) if isinstance(node.target, torch._ops.OpOverload) else ""
        return text or f"{getattr(node.target, '__module__', '')}.{getattr(node.target, '__name__', node.target)}".lstrip(".")

    def module_path(self, node: fx.Node) -> str:
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        return str(stack[-1][0]) if stack else ""

    def source_line(self, node: fx.Node) -> str:
        """``file.py:line`` of the innermost frame outside of torch; the name only, so that it is the same on any machine."""
        frames = FRAME.findall(node.stack_trace or node.meta.get("stack_trace") or "")
        own = [(path, line) for path, line in frames if "/torch/" not in path.replace("\\", "/")]
        path, line = (own or frames or [("", "")])[-1]
        return f"{PurePath(path).name}:{line}" if path else ""
