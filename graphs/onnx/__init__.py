"""Models in ONNX files: what a file says, read by ourselves and within bounds.

Nothing outside of this room and of ``graphs/frontend/onnx*.py`` knows the format.
"""
