"""Readers of checkpoints: tensors by name, mapped and checked.

``open_checkpoint`` opens a folder, ``match`` compares it with a graph.
"""

from ferrum.graphs.weights.checkpoint import Checkpoint, open_checkpoint
from ferrum.graphs.weights.match import WeightsMismatch, match

__all__ = ["Checkpoint", "WeightsMismatch", "match", "open_checkpoint"]
