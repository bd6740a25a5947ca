"""Readers of foreign model forms. The only importers of torch besides the models; ONNX files are read without its package."""
