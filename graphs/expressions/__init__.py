"""Where parameters come from: typed expressions over checkpoint tensors, their text, and their values piece by piece.

This room knows neither graphs nor checkpoints: it reads tensors through ``Reader``.
"""
