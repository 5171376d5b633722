"""Operators for the numpy evaluator of the onnx package, where it has them wrong or slow."""
