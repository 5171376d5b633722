"""Reading an ONNX model from wherever it is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import ModelProto, TensorProto, TensorShapeProto
from onnx.external_data_helper import load_external_data_for_model

from deepshap_ir.errors import ModelError
from deepshap_ir.importing.newer import unknown_operators
from deepshap_ir.importing.runner import newest_ir_version, newest_opset, one_line
from deepshap_ir.importing.skeleton import skeleton
from deepshap_ir.importing.subgraphs import all_nodes

if TYPE_CHECKING:
    import onnx_ir

OLDEST_OPSET = 7


def load_model(source: str | os.PathLike[str] | bytes | BinaryIO | ModelProto | onnx_ir.Model) -> ModelProto:
    """Read and check a model, its external data included.

    Parameters
    ----------
    source : a path, the content of a file, an open binary file, or a model in memory, which is copied.

    Raises
    ------
    ModelError : there is no such file, it is not ONNX or truncated, external data are missing, the checker refuses
        it, or its opset is unknown, or newer than the installed onnxruntime and not to be written in an older one.
    """
    if isinstance(source, ModelProto):
        name, model = "the ModelProto", ModelProto()
        model.CopyFrom(source)
        _refuse_external(model, name)
    elif isinstance(source, (bytes, bytearray, memoryview)):
        name = f"the {len(source)} bytes given as a model"
        model = _parsed(bytes(source), name)
        _refuse_external(model, name)
    elif isinstance(source, (str, os.PathLike)):
        name = f"{os.fspath(source)!r}"
        model = _from_path(Path(source), name)
    elif hasattr(source, "read"):
        name = f"the file object {getattr(source, 'name', source)!r}"
        model = _from_file(source, name)
    else:
        name = "the onnx_ir.Model"
        model = _from_ir(source, name)
    _clean_imports(model)
    _check_versions(model, name)
    _check(model, name)
    return model


def _parsed(content: bytes, name: str) -> ModelProto:
    model = ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError:
        raise ModelError(
            f"{name}: not an ONNX model, or truncated ({len(content)} bytes cannot be parsed). Export or copy it again."
        ) from None
    if not model.HasField("graph") or not model.ir_version:
        raise ModelError(f"{name}: not an ONNX model (no graph in {len(content)} bytes). Export or copy it again.")
    return model


def _from_path(path: Path, name: str) -> ModelProto:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ModelError(f"{name}: no such file (the current folder is {os.getcwd()!r}).") from None
    except IsADirectoryError:
        raise ModelError(f"{name}: is a folder, and no SavedModel: it has no saved_model.pb.") from None
    except OSError as error:
        raise ModelError(f"{name}: cannot be read: {error.strerror}.") from None
    model = _parsed(content, name)
    _load_external(model, path.parent, name)
    return model


def _from_file(file: Any, name: str) -> ModelProto:
    content = file.read()
    if not isinstance(content, bytes):
        raise ModelError(f"{name}: is open as text; open it with mode 'rb'.")
    model = _parsed(content, name)
    path = getattr(file, "name", None)
    if isinstance(path, str) and Path(path).is_file():
        _load_external(model, Path(path).parent, name)
    _refuse_external(model, name)
    return model


def _from_ir(source: Any, name: str) -> ModelProto:
    import onnx_ir

    if not isinstance(source, onnx_ir.Model):
        raise ModelError(
            f"a model is a path, bytes, a binary file, an onnx.ModelProto or an onnx_ir.Model, not {type(source)!r}."
        )
    model = onnx_ir.to_proto(source)
    tensors = (value.const_value for graph in source.graphs() for value in graph.initializers.values())
    folders = {os.fspath(tensor.base_dir) for tensor in tensors if isinstance(tensor, onnx_ir.ExternalTensor)}
    if len(folders) == 1:
        _load_external(model, Path(*folders), name)
    _refuse_external(model, name)
    return model


def _external(model: ModelProto) -> list[TensorProto]:
    return [
        tensor
        for tensor in onnx.external_data_helper._get_all_tensors(model)
        if onnx.external_data_helper.uses_external_data(tensor)
    ]


def _load_external(model: ModelProto, folder: Path, name: str) -> None:
    try:
        load_external_data_for_model(model, str(folder))
    except (OSError, ValueError, RuntimeError, onnx.checker.ValidationError) as error:
        files = sorted({entry.value for t in _external(model) for entry in t.external_data if entry.key == "location"})
        raise ModelError(
            f"{name}: its external data cannot be loaded (files {', '.join(files)} expected in {str(folder)!r}): "
            f"{one_line(error)}"
        ) from None


def _refuse_external(model: ModelProto, name: str) -> None:
    missing = _external(model)
    if missing:
        files = sorted({entry.value for t in missing for entry in t.external_data if entry.key == "location"})
        raise ModelError(
            f"{name}: {len(missing)} tensors are stored in other files ({', '.join(files)}), whose folder is unknown. "
            f"Give the path of the model, or load it with onnx.load(path)."
        )


def _clean_imports(model: ModelProto) -> None:
    """Name the standard domain ``""`` everywhere, and keep one import, the newest, of every domain."""
    versions: dict[str, int] = {}
    for entry in model.opset_import:
        domain = "" if entry.domain == "ai.onnx" else entry.domain
        versions[domain] = max(entry.version, versions.get(domain, 0))
    del model.opset_import[:]
    for domain, version in versions.items():
        model.opset_import.add(domain=domain, version=version)


def _check_versions(model: ModelProto, name: str) -> None:
    versions = {entry.domain: entry.version for entry in model.opset_import}
    if not versions:
        raise ModelError(f"{name}: not a valid ONNX model: it imports no operator set.")
    opset = versions.get("")
    newest = max(newest_opset(), onnx.defs.onnx_opset_version())
    known = f"opsets {OLDEST_OPSET} to {newest_opset()} can be explained with the installed onnxruntime"
    remedy = "install a newer onnxruntime or export to an older opset"
    if opset is not None and not OLDEST_OPSET <= opset <= newest:
        raise ModelError(f"{name}: opset {opset}; {known}: {remedy if opset > newest else 'export again'}.")
    unknown = unknown_operators(model, opset) if opset is not None and opset > newest_opset() else []
    if unknown:
        raise ModelError(f"{name}: opset {opset}; {known}, to which {', '.join(unknown)} cannot be brought: {remedy}.")
    if model.ir_version > newest_ir_version():
        # the IR version says how the file is written, and opsets that onnxruntime knows need none that it does not
        model.ir_version = newest_ir_version()


def _check(model: ModelProto, name: str) -> None:
    small = skeleton(model)[0]
    # before IR version 4 the checker wants initializers among the inputs, which onnxruntime does not
    small.ir_version = max(small.ir_version, 4)
    for value in (*small.graph.input, *small.graph.output):
        # the checker demands shapes, which onnxruntime does not and many exporters leave out
        if not value.HasField("type"):
            value.type.tensor_type.elem_type = TensorProto.FLOAT
        if value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape"):
            value.type.tensor_type.shape.CopyFrom(TensorShapeProto())
    for node in all_nodes(small.graph):
        if node.op_type == "GroupNormalization" and node.domain == "":
            # deprecated from 18 to 20 by a mistake of the standard, and run by onnxruntime
            node.op_type = "Identity"
            del node.input[1:], node.attribute[:]
    try:
        onnx.checker.check_model(small)
    except onnx.checker.ValidationError as error:
        raise ModelError(f"{name}: not a valid ONNX model: {one_line(error)}") from None
