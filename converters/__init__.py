"""Converters: whatever a model is kept in -> an ONNX model."""
