"""Models in GGUF files as the rest of the compiler takes models: a configuration, a tokenizer, a template and tensors.

Nothing outside of this room and of ``graphs/weights/gguf*.py`` knows the format.
"""
