"""Readers of foreign model forms. The only importers of torch and onnx besides the models."""
