"""Readers of checkpoints: tensors by name, mapped and checked.

``open_checkpoint`` opens a folder, ``match`` compares it with a graph, ``CheckpointWeights`` feeds the interpreter.
"""

from ferrum.graphs.weights.checkpoint import Checkpoint, open_checkpoint
from ferrum.graphs.weights.match import CheckpointWeights, WeightsMismatch, match

__all__ = ["Checkpoint", "CheckpointWeights", "WeightsMismatch", "match", "open_checkpoint"]
