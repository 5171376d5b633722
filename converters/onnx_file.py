"""ONNX models, from wherever they are: nothing to convert."""

from __future__ import annotations

import os
from typing import Any

from onnx import ModelProto

from deepshap_ir.converters.registry import Conversion, Settings, comes_from

ACCEPTS = "an ONNX model: a path, bytes, a binary file, an onnx.ModelProto or an onnx_ir.Model"


def takes(model: Any) -> bool:
    """Tell whether `deepshap_ir.importing.load.load_model` reads `model`."""
    kept = (str, os.PathLike, bytes, bytearray, memoryview, ModelProto)
    return isinstance(model, kept) or hasattr(model, "read") or comes_from(model, "onnx_ir", "Model")


def convert(model: Any, background: Any, settings: Settings) -> Conversion:
    """Return `model` as it is, to be read and compared by the importer."""
    return Conversion(model, output=settings.output, hold=settings.hold)
