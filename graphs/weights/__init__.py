"""Readers of checkpoints: tensors by name, mapped and checked.

``open_checkpoint`` opens a folder or a GGUF file, ``match`` compares it with a graph.
"""

from ferrum.graphs.weights.checkpoint import Checkpoint
from ferrum.graphs.weights.match import WeightsMismatch, match
from ferrum.graphs.weights.opened import open_checkpoint

__all__ = ["Checkpoint", "WeightsMismatch", "match", "open_checkpoint"]
