"""One compile of one model for one target: what all stages read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from ferrum.codegen.backend import Backend, backend_of
from ferrum.codegen.kernels.linear.cpu import Blocking
from ferrum.codegen.options import CompileOptions
from ferrum.codegen.policy import KEEP
from ferrum.codegen.target import AnyCpu, AnyTarget, parse_target
from ferrum.errors import FerrumError
from ferrum.graphs.model_files import open_files
from ferrum.graphs.models.config import ModelConfig
from ferrum.graphs.models.registry import find_config
from ferrum.graphs.models.traced_config import TracedConfig
from ferrum.graphs.weights.gguf import is_gguf
from ferrum.graphs.weights.saved import saved_graph
from ferrum.pack.atomic import check_place
from ferrum.pack.schema import TuningRecord

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Job:
    options: CompileOptions
    folder: Path
    target: AnyTarget
    config: ModelConfig | TracedConfig
    progress: Progress
    tuned: dict[str, Blocking] = field(default_factory=dict)
    tuning: list[TuningRecord] = field(default_factory=list)

    @property
    def backend(self) -> Backend:
        """Of a target that is one variant of the code."""
        assert not isinstance(self.target, AnyCpu)
        return backend_of(self.target, self.options.quant, self.options.kv, self.tuned, self.options.activations)

    @property
    def name(self) -> str:
        return self.options.name or (self.folder.stem if self.folder.is_file() else self.folder.resolve().name)

    @property
    def output(self) -> Path:
        quant = "" if self.options.quant in ("keep", "none") else f".{self.options.quant}"
        quant += f".kv-{self.options.kv_dtype}" if self.options.kv_dtype else ""
        quant += ".act-f32" if self.options.activations == "f32" else ""
        return self.options.output or Path(f"{self.name}.{self.target.name}{quant}.fpk")

    @property
    def max_model_len(self) -> int:
        return self.config.max_model_len or self.config.max_position_embeddings

    @property
    def traced(self) -> bool:
        """Whether the model is another's module, which says itself what it reads."""
        return isinstance(self.config, TracedConfig)

    @property
    def dump_folder(self) -> Path:
        """Where stages leave their results when the user asks for dumps or stops after one."""
        return self.options.dump_dir or Path("build") / "dump" / self.name

    def on(self, target: AnyTarget, apart: bool = False) -> Job:
        """The same for another target; ``apart``: what its stages dump goes to a folder of its own."""
        dumps = self.options.dump_dir
        if apart and (self.options.stop_after or self.options.start_from):
            dumps = self.dump_folder
        options = replace(self.options, target=target.name, dump_dir=dumps / target.name if dumps and apart else dumps)
        return replace(self, target=target, options=options, tuned={}, tuning=[])


def open_job(options: CompileOptions, progress: Progress) -> Job:
    """Raises FerrumError for a folder or file, a configuration or an option that cannot be compiled."""
    folder = Path(options.model)
    target = parse_target(options.target)
    step = "give a folder with config.json and weights, or a .gguf, .onnx or .pt2 file"
    if not folder.exists():
        raise FerrumError("model-not-found", "there is no such model", str(folder), step)
    if folder.is_file() and not is_gguf(folder) and saved_graph(folder) is None:
        raise FerrumError("format-unsupported", "files of this kind are not models that can be read", str(folder), step)
    config = find_config(folder, options.pooling)
    if options.max_model_len > config.longest:
        what = f"the model knows positions up to {config.longest} and {options.max_model_len} were asked for"
        raise FerrumError("bad-option", what, "--max-model-len", "give a smaller length")
    if options.quant == KEEP and not open_files(folder).quantized:
        options = replace(options, quant="none")  # the same pack, and the same words about it
    config = replace(config, max_model_len=options.max_model_len or config.max_model_len)
    job = Job(options, folder, target, config, progress)
    if not options.stop_after:
        check_place(job.output)
    return job
