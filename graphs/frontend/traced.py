"""A model that `transformers` knows → graph, by tracing its own module with functions of ours registered."""

from __future__ import annotations

import re
import warnings
from collections.abc import Container, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ferrum.errors import FerrumError
from ferrum.graphs.expressions.expression import Expr
from ferrum.graphs.expressions.expression import Tensor as Weight
from ferrum.graphs.findings import Finding, UnsupportedOps
from ferrum.graphs.frontend.conversions import parameter_sources
from ferrum.graphs.frontend.embedder import Embedder
from ferrum.graphs.frontend.registered import NAME, Untraced, registered
from ferrum.graphs.frontend.replaced import functions_of_ours
from ferrum.graphs.frontend.torch_export import TRACE_SHAPE, Names, first_names, import_program, refuse_longer
from ferrum.graphs.ir import Graph, Node
from ferrum.graphs.models.embedding import Embedding
from ferrum.graphs.models.traced_config import TracedConfig
from ferrum.graphs.rewrite import live
from ferrum.graphs.weights.checkpoint import Checkpoint
from ferrum.graphs.weights.heads import differ
from ferrum.graphs.weights.opened import open_checkpoint

PREFIX = "model."
_NOT_OF_THE_MODULE = ("auto_map", "torch_dtype", "dtype", "quantization_config")


class Logits(nn.Module):
    """Token ids to logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(input_ids=tokens, use_cache=False).logits


def trace_folder(config: TracedConfig, folder: Path, name: str) -> Graph:
    """The graph of the model in ``folder``, whose checkpoint is only listed. Raises as ``trace_module`` does."""
    model = empty_model(config, name)
    with closing(open_checkpoint(folder)) as checkpoint:
        sources = parameter_sources(model, checkpoint.model_shapes())
        for other, first in tied_parameters(model).items():
            twin = sources.get(other)
            if twin is not None and _differ(checkpoint, sources.setdefault(first, twin), twin):
                model = empty_model(replace(config, values={**config.values, "tie_word_embeddings": False}), name)
    refuse_unknown(model, sources)
    buffers_of_checkpoint(model, sources)
    parameters_without_memory(model)
    longest = config.max_model_len or config.longest
    return trace_module(model, name, lambda parameter: sources.get(parameter, parameter), longest, config.embedding)


def refuse_unknown(model: nn.Module, sources: Mapping[str, Expr]) -> None:
    """Raises ``UnsupportedOps`` for tensors in the checkpoint that belong into a module which does not have them. What a module
    has and its own code does not read is no fault: another program's head, tables that are computed."""
    known = model.state_dict().keys()
    modules = {name.rpartition(".")[0] for name in known}
    aside = re.compile("|".join(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ["(?!)"]))
    strange = [n for n in sources if n not in known and n.rpartition(".")[0] in modules and not aside.search(n)]
    if strange:
        found = [Finding(f"{name} is there, but the model does not use it", "", "checkpoint", "") for name in strange]
        raise UnsupportedOps(found, "weights")


def tied_parameters(module: nn.Module) -> dict[str, str]:
    """By name, the first name of the same parameter."""
    return first_names(list(module.named_parameters(remove_duplicate=False)))


def _differ(checkpoint: Checkpoint, first: Expr, second: Expr) -> bool:
    if checkpoint.meanings or not (isinstance(first, Weight) and isinstance(second, Weight)):
        return False
    return differ(checkpoint, first.name, second.name)


def empty_model(config: TracedConfig, name: str) -> nn.Module:
    """The module of `transformers` with its buffers and without weights. Raises FerrumError (config-unsupported)."""
    import transformers

    values = {key: value for key, value in config.values.items() if key not in _NOT_OF_THE_MODULE}
    values = transformers.PreTrainedConfig._decode_special_floats(values)  # infinity, which JSON has no word for
    try:
        with parameters_on_meta(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kind = getattr(transformers, config.architecture)
            own = kind.config_class.from_dict(values)
            return kind._from_config(own, dtype=torch.float32, attn_implementation="eager")
    except Exception as error:  # any class of model checks its configuration its own way
        lines = [line for line in str(error).splitlines() if line.strip()]
        what = f"{config.architecture} cannot be made from this configuration: {lines[0] if lines else type(error).__name__}"
        raise FerrumError("config-unsupported", what, f"model {name}", "check config.json") from error


def buffers_of_checkpoint(model: nn.Module, sources: Container[str]) -> None:
    """What a checkpoint holds is a parameter, whatever the module calls it: a router's correction, say. Others are constants."""
    for path, module in model.named_modules():
        for name, buffer in list(module._buffers.items()):
            if buffer is None or not buffer.is_floating_point() or name in module._non_persistent_buffers_set:
                continue
            if f"{path}.{name}".lstrip(".") in sources:
                del module._buffers[name]
                module.register_parameter(name, nn.Parameter(buffer.to("meta"), requires_grad=False))


def parameters_without_memory(model: nn.Module) -> None:
    """Parameters on the CPU whose elements are all one: there, unlike on the meta device, constants of a trace have values."""
    made: dict[nn.Parameter, nn.Parameter] = {}  # the same one for tied ones
    for module in model.modules():
        for name, old in module._parameters.items():
            if old is not None and old not in made:
                one = torch.empty_strided(old.shape, (0,) * old.ndim, dtype=old.dtype)
                made[old] = nn.Parameter(one, requires_grad=False)
            module._parameters[name] = None if old is None else made[old]


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Parameters that modules register take no memory; buffers are computed as always."""
    register = nn.Module.register_parameter

    def without_memory(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:  # one that is there is tied: it stays the same
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=False)
        register(module, name, parameter)

    nn.Module.register_parameter = without_memory
    try:
        yield
    finally:
        nn.Module.register_parameter = register


def trace_module(
    model: nn.Module,
    name: str = "model",
    checkpoint_name: Names | None = None,
    longest: int = 0,
    embedding: Embedding | None = None,
) -> Graph:
    """The graph of a causal language model of `transformers`, or with ``embedding`` of one that gives a row for each token, for
    sequences of up to ``longest`` tokens (0: whatever was traced). ``checkpoint_name`` goes by the model's own names.

    Raises ``UnsupportedOps`` with what has no form in the graph, ``FerrumError`` (export-failed).
    """
    module = Logits(model.eval()) if embedding is None else Embedder(model.eval(), embedding)
    with registered(), attention_of_ours(model), functions_of_ours(model):
        program = exported(module, name)
    refuse_longer(program, longest, name)
    tied = tied_parameters(module)

    def own(parameter: str) -> Any:
        plain = parameter.removeprefix(PREFIX)
        return plain if checkpoint_name is None else checkpoint_name(plain)

    pad = getattr(getattr(model, "config", None), "pad_token_id", None)
    return without_padding(import_program(program, name, own, None, tied, longest), pad)


def without_padding(graph: Graph, pad: object) -> Graph:
    """``graph`` where no token is padding: some models number those that are not, and rows here have no others."""
    numbers = {node.output.name for node in graph.nodes if node.op == "full" and node.attrs["value"] == pad}
    every: dict[str, Any] = {"value": 1.0}
    ones: set[str] = set()

    def judged(node: Node) -> Node:
        of_tokens = node.op == "ne" and "tokens" in node.inputs and bool(numbers.intersection(node.inputs))
        if not of_tokens and not (node.op == "cast" and node.inputs[0] in ones):
            return node
        ones.add(node.output.name)
        return Node("full", (), node.outputs, every, node.origin)

    nodes, used = live([judged(node) for node in graph.nodes], graph.outputs)
    return replace(graph, nodes=tuple(nodes), params=tuple(p for p in graph.params if p.name in used))


def exported(module: nn.Module, name: str) -> ExportedProgram:
    """With batch and seq dynamic: as symbols of which nothing is assumed, else with what torch derives of them."""
    device = next(module.parameters()).device
    tokens = torch.zeros(TRACE_SHAPE, dtype=torch.int64, device=device)
    error: Exception | None = None
    for dims in ({0: Dim("batch"), 1: Dim("seq")}, {0: Dim.AUTO, 1: Dim.AUTO}):
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                return torch.export.export(module, (tokens,), dynamic_shapes=(dims,), strict=False)
        except Untraced as fault:
            raise UnsupportedOps([Finding(str(fault), "", "", "")], f"model {name}") from fault
        except Exception as fault:  # torch.export raises many types; the first line says which construct it was
            error = error or fault
    assert error is not None
    lines = [line for line in str(error).splitlines() if line.strip()]
    what = f"torch.export: {type(error).__name__}: {lines[0] if lines else ''}"
    raise FerrumError("export-failed", what, f"model {name}", "report this model") from error


@contextmanager
def attention_of_ours(model: nn.Module) -> Iterator[None]:
    """Every configuration within ``model`` names our functions; afterwards what it named before."""
    configs = {id(c): c for m in model.modules() for c in vars(m).values() if hasattr(c, "_attn_implementation_internal")}
    keys = ("_attn_implementation_internal", "_experts_implementation_internal")
    before = [(config, key, getattr(config, key, None)) for config in configs.values() for key in keys]
    for config, key, _ in before:
        setattr(config, key, NAME)
    try:
        yield
    finally:
        for config, key, value in before:
            setattr(config, key, value)
