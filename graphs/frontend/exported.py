"""A .pt2 file → graph: torch's own reader of the program's JSON, given nothing that could make it run code.

``torch.export.load`` opens pickles (sample inputs, tensors with classes, objects), evaluates the text of sizes as Python and
imports modules that a tree of outputs names. So only the graph goes through torch: its ops are looked up in a short list of
namespaces, sizes may only hold names, whole numbers and a few functions, trees are replaced by plain ones, and tensors come from
the archive by ourselves.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram

from ferrum.errors import FerrumError
from ferrum.graphs.findings import Finding, UnsupportedOps
from ferrum.graphs.frontend.torch_export import MAX_CONSTANT, import_program, refuse_longer
from ferrum.graphs.ir import Graph
from ferrum.graphs.pt2.archive import Archive
from ferrum.graphs.pt2.checkpoint import Exported, tensors_of
from ferrum.graphs.weights.safetensors import fault

MAX_SIZE_TEXT = 1000
_OPERATORS = ("getitem", "add", "sub", "mul", "floordiv", "truediv", "mod", "pow", "neg", "pos", "abs", "eq", "ne", "lt", "le",
              "gt", "ge", "and_", "or_", "not_")  # fmt: skip
_TARGET = re.compile(
    r"torch\.ops\.aten\.\w+(\.\w+)?|_operator\.(" + "|".join(_OPERATORS) + r")|math\.(ceil|floor|trunc)|torch\.sym_\w+"
)
_SYMBOL = re.compile(r"[a-z]{1,3}\d{1,6}")
# torch writes sizes as sympy does, in its own words or as calls of its classes.
_FUNCTIONS = frozenset({
    "Symbol", "Integer", "Add", "Mul", "Pow", "floor", "ceiling", "Equality", "Unequality", "StrictLessThan", "LessThan",
    "StrictGreaterThan", "GreaterThan",
    "FloorDiv", "CleanDiv", "CeilDiv", "Mod", "PythonMod", "ModularIndexing", "Max", "Min", "CeilToInt", "FloorToInt",
    "TruncToInt", "IntTrueDiv", "ToFloat", "Eq", "Ne", "Lt", "Le", "Gt", "Ge", "And", "Or", "Not", "Identity",
})  # fmt: skip
_GROUPS = (ast.Expression, ast.BinOp, ast.UnaryOp, ast.Compare, ast.BoolOp, ast.Load, ast.operator, ast.unaryop, ast.cmpop,
           ast.boolop)  # fmt: skip
_KEPT = ("stack_trace", "nn_module_stack")  # of what a node says of where it comes from
# Values that hold programs or objects, by their keys in the JSON.
_REFUSED = {"as_graph": "control flow", "as_custom_obj": "an object that is no tensor", "as_operator": "an op as a value",
            "as_string_to_argument": "arguments by name"}  # fmt: skip
_LEAF = '{"type": null, "context": null, "children_spec": []}'
_CPU = {"type": "cpu", "index": None}


def import_exported(path: Path, name: str = "model", longest: int = 0) -> Graph:
    """The graph of a program with one int64 input [batch, seq], both dynamic, and one output, for sequences of up to ``longest``
    tokens.

    Raises ``UnsupportedOps``, FerrumError as ``Archive`` and ``tensors_of`` do, and export-failed.
    """
    with closing(Archive(path)) as archive:
        tensors, said = tensors_of(archive), archive.program()
        try:
            guarded = Guard(archive).program(said)
        except RecursionError:
            raise fault(path, "graph", "is nested too deep") from None
        program = deserialized(archive, guarded, tensors)
        refuse_longer(program, longest, name)
        return import_program(program, name, longest=longest)


class Guard:
    """Makes of a program's JSON one that torch may read."""

    def __init__(self, archive: Archive) -> None:
        self.archive = archive
        self.findings: list[Finding] = []
        self.sizes: set[str] = set()

    def program(self, said: Mapping[str, Any]) -> dict[str, Any]:
        """Raises ``UnsupportedOps`` for ops and values that no graph has, FerrumError (checkpoint-corrupt)."""
        module = self.mapping(said, "graph_module")
        graph, signature = self.mapping(module, "graph"), self.mapping(module, "signature")
        nodes = graph.get("nodes")
        if not isinstance(nodes, list) or graph.get("custom_obj_values"):
            raise self.corrupt("graph", "has no nodes, or holds objects")
        kept = [self.node(node) for node in nodes]
        safe = {**{key: self.value(value) for key, value in graph.items() if key != "nodes"}, "nodes": kept}
        specs = self.value(signature)
        if self.findings:
            raise UnsupportedOps(self.findings, f"model {self.archive.path.name}")
        counts = [len(specs.get(key, ())) if isinstance(specs.get(key), list) else 0 for key in ("input_specs", "output_specs")]
        users = sum("user_input" in spec for spec in specs.get("input_specs", ()) if isinstance(spec, dict))
        return {
            "graph_module": {"graph": safe, "signature": specs, "module_call_graph": calls(users, counts[1]), "metadata": {}},
            "opset_version": {}, "verifiers": ["TRAINING"], "guards_code": [], "torch_version": "",
            **{key: self.value(self.mapping(said, key)) for key in ("range_constraints", "schema_version")},
        }  # fmt: skip

    def node(self, node: Any) -> dict[str, Any]:
        if not isinstance(node, dict) or not isinstance(node.get("target"), str):
            raise self.corrupt("graph", "has a node without a target")
        target, metadata = node["target"], node.get("metadata")
        metadata = metadata if isinstance(metadata, dict) else {}
        if not _TARGET.fullmatch(target):
            self.findings.append(Finding(target[:200], "", "", "ops of torch.ops.aten"))
        kept = {key: metadata[key] for key in _KEPT if isinstance(metadata.get(key), str)}
        return {**{key: self.value(value) for key, value in node.items() if key != "metadata"}, "metadata": kept}

    def value(self, value: Any) -> Any:
        """A copy of JSON without what could run, every tensor on the CPU."""
        if isinstance(value, list):
            return [self.value(one) for one in value]
        if not isinstance(value, dict):
            return value
        for key, what in _REFUSED.items():
            if key in value:
                self.findings.append(Finding(what, "", "", "tensors and numbers"))
        if "expr_str" in value:
            self.size(value["expr_str"])
        kept = {key: one for key, one in value.items() if key not in _REFUSED}
        return {key: _CPU if key in ("device", "as_device") else self.value(one) for key, one in kept.items()}

    def size(self, text: Any) -> None:
        """Raises FerrumError (checkpoint-corrupt) for a size that is no arithmetic of names and whole numbers."""
        if text in self.sizes:
            return
        if not isinstance(text, str) or len(text) > MAX_SIZE_TEXT:
            raise self.corrupt("a size", "is no text, or too long")
        try:
            tree = ast.parse(text, mode="eval")
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise self.corrupt(f"the size {text[:60]!r}", "cannot be read") from None
        if not all(allowed(part, parent) for part, parent in parts(tree)):
            raise self.corrupt(f"the size {text[:60]!r}", "is more than arithmetic of sizes")
        self.sizes.add(text)

    def mapping(self, said: Mapping[str, Any], key: str) -> Mapping[str, Any]:
        found = said.get(key)
        if not isinstance(found, dict):
            raise self.corrupt(key, "is missing")
        return found

    def corrupt(self, field: str, what: str) -> FerrumError:
        return fault(self.archive.path, field, what)


def parts(tree: ast.AST) -> Iterator[tuple[ast.AST, ast.AST | None]]:
    yield tree, None
    for node in ast.walk(tree):
        for child in ast.iter_child_nodes(node):
            yield child, node


def allowed(part: ast.AST, parent: ast.AST | None) -> bool:
    if isinstance(part, ast.Name):
        if isinstance(parent, ast.Call) and parent.func is part:
            return part.id in _FUNCTIONS
        return _SYMBOL.fullmatch(part.id) is not None
    if isinstance(part, ast.Constant):
        whole = isinstance(part.value, int) and abs(part.value) < 1 << 63
        return whole or (called(parent) == "Symbol" and isinstance(part.value, str) and _SYMBOL.fullmatch(part.value) is not None)
    if isinstance(part, ast.keyword):
        return called(parent) == "Symbol" and isinstance(part.value, ast.Constant) and isinstance(part.value.value, bool)
    if isinstance(part, ast.Call) and called(part) == "Pow":
        return len(part.args) == 2 and power(*part.args)
    if isinstance(part, ast.Call):
        return bool(called(part))
    if isinstance(part, ast.BinOp) and isinstance(part.op, ast.Pow):
        return power(part.left, part.right)
    return isinstance(part, _GROUPS) and not isinstance(part, ast.LShift | ast.RShift)


def called(part: ast.AST | None) -> str:
    return part.func.id if isinstance(part, ast.Call) and isinstance(part.func, ast.Name) else ""


def power(base: ast.AST, exponent: ast.AST) -> bool:
    """A small power of a name: of numbers it could be one that takes all memory."""
    if isinstance(exponent, ast.Call) and called(exponent) == "Integer" and len(exponent.args) == 1:
        exponent = exponent.args[0]
    named = isinstance(base, ast.Name) or called(base) == "Symbol"
    return named and isinstance(exponent, ast.Constant) and isinstance(exponent.value, int) and 0 <= exponent.value < 5


def calls(inputs: int, outputs: int) -> list[dict[str, Any]]:
    """The one call of a program: a function of some tensors that gives some."""
    leaves = [", ".join([_LEAF] * count) for count in (inputs, outputs)]
    given, made = (f'{{"type": "builtins.tuple", "context": "null", "children_spec": [{part}]}}' for part in leaves)
    none = '{"type": "builtins.dict", "context": "[]", "children_spec": []}'
    whole = f'[1, {{"type": "builtins.tuple", "context": "null", "children_spec": [{given}, {none}]}}]'
    trees = {"in_spec": whole, "out_spec": f"[1, {made}]"}
    return [{"fqn": "", "signature": {"inputs": [], "outputs": [], "forward_arg_names": None, **trees}}]


def deserialized(archive: Archive, said: dict[str, Any], tensors: Exported) -> ExportedProgram:
    """Raises FerrumError (export-failed) for a program that torch does not understand."""
    from torch._export.serde import schema, serialize

    state, constants = values(tensors)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = serialize._dict_to_dataclass(schema.ExportedProgram, said)
            return serialize.ExportedProgramDeserializer().deserialize(program, state, constants)
    except Exception as error:  # of any type; the last line says which part it was
        lines = [line for line in str(error).splitlines() if line.strip()]
        what = f"torch cannot read this program: {type(error).__name__}: {lines[-1] if lines else ''}"
        raise FerrumError("export-failed", what, archive.path.name, f"save it with torch {torch.__version__}") from error


def values(tensors: Exported) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters without memory, those that are one tensor as one; buffers and constants as they are, if they are small."""
    state: dict[str, Any] = {}
    for name, info in tensors.tensors.items():
        first = tensors.same[name]
        dtype = DTYPES[info.dtype]
        if first in state and name in tensors.parameters:
            state[name] = state[first]
        elif name in tensors.parameters or np.prod(info.shape, dtype=np.float64) > MAX_CONSTANT:
            empty = torch.empty_strided(info.shape, (0,) * len(info.shape), dtype=dtype)
            state[name] = torch.nn.Parameter(empty, requires_grad=False) if name in tensors.parameters else empty
        else:
            state[name] = torch.from_numpy(tensors.read(name).copy()).view(dtype)
    return {k: v for k, v in state.items() if k not in tensors.constants}, {k: state[k] for k in tensors.constants}


DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16, "f64": torch.float64, "i64": torch.int64,
          "i32": torch.int32, "i16": torch.int16, "i8": torch.int8, "u8": torch.uint8, "bool": torch.bool,
          "f8e4m3": torch.float8_e4m3fn, "f8e5m2": torch.float8_e5m2}  # fmt: skip
