"""A file with all that an explainer is made of: a zip archive without any pickle in it.

``explainer.json`` has the settings, ``model.onnx`` the model, ``weights.bin`` its large tensors one after the other (a
protobuf message cannot exceed 2 GB), ``arrays.npz`` the background and other arrays.
"""

from __future__ import annotations

import io
import json
import os
import uuid
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import ModelProto, TensorProto, numpy_helper
from onnx.external_data_helper import _get_all_tensors

from deepshap_ir import __version__
from deepshap_ir.errors import InputError, ModelError
from deepshap_ir.graph import Array

FORMAT = 1
"""Version of the file's form; one that reads it differently has another number."""

APART = 1 << 12
"""Tensors from this many bytes on are in ``weights.bin``."""

File = str | os.PathLike[str] | BinaryIO


@dataclass
class Contents:
    """What is in a file.

    Attributes
    ----------
    model : no one else's: its large tensors are taken out of it when it is written.
    settings : arguments of `deepshap_ir.DeepExplainer` by name, and those of `Conversion` under "conversion".
    background : by input name; None where the references are a function.
    columns : input name -> labels of the columns of its background.
    own_rules : the operators and nodes with rules of the user's own, other than sets by name.
    own_kernels : names of the kernels of the user's own operators.
    """

    model: ModelProto
    settings: dict[str, Any]
    background: dict[str, Array] | None
    columns: dict[str, Any] = field(default_factory=dict)
    own_rules: list[str] = field(default_factory=list)
    own_kernels: list[str] = field(default_factory=list)


def to_bytes(contents: Contents) -> bytes:
    """The file in memory."""
    buffer = io.BytesIO()
    _write_archive(buffer, contents)
    return buffer.getvalue()


def write(file: File, contents: Contents) -> None:
    """Write the file, whole or not at all."""
    if not isinstance(file, str | os.PathLike):
        if not hasattr(file, "write"):
            raise InputError(f"save: a path or a binary file open for writing is needed, not {type(file).__name__}.")
        file.write(to_bytes(contents))
        return
    with _replacing(Path(file)) as opened:
        _write_archive(opened, contents)


def read(file: File) -> Contents:
    """Read what `write` wrote.

    Raises
    ------
    ModelError : there is no such file, it is something else, damaged, or of a newer version.
    """
    name = repr(os.fspath(file)) if isinstance(file, str | os.PathLike) else "the file"
    foreign = f"{name} is no explainer that DeepExplainer.save wrote"
    try:
        with zipfile.ZipFile(file) as archive:
            if "explainer.json" not in archive.namelist():
                # of a truncated file, the archive of the arrays inside it may be found
                raise ModelError(f"{foreign}, or it is truncated or damaged: a zip archive of other things.")
            return _read_archive(archive, name)
    except FileNotFoundError:
        raise ModelError(f"{name}: no such file (the current folder is {os.getcwd()!r}).") from None
    except OSError as error:
        raise ModelError(f"{name}: cannot be read: {error.strerror or error}.") from None
    except (zipfile.BadZipFile, EOFError) as error:
        raise ModelError(f"{foreign}, or it is truncated or damaged: {error}.") from None
    except (DecodeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise ModelError(f"{name} is damaged: {type(error).__name__}: {error}.") from error


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` once it is complete."""
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with beside.open("xb") as opened:
            yield opened
            opened.flush()
            os.fsync(opened.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _write_archive(file: BinaryIO, contents: Contents) -> None:
    arrays: list[Array] = []
    background = contents.background
    manifest = {
        "format": FORMAT,
        "written_by": f"deepshap-ir {__version__}",
        "settings": _packed(contents.settings, arrays, "settings"),
        "background": None if background is None else _packed(background, arrays, "background"),
        "columns": _packed(contents.columns, arrays, "columns"),
        "own_rules": contents.own_rules,
        "own_kernels": contents.own_kernels,
    }
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("explainer.json", json.dumps(manifest, indent=1))
        with archive.open("weights.bin", "w", force_zip64=True) as opened:
            _move_weights(contents.model, opened)
        archive.writestr("model.onnx", contents.model.SerializeToString())
        with archive.open("arrays.npz", "w", force_zip64=True) as opened:
            np.savez(opened, *arrays)


def _read_archive(archive: zipfile.ZipFile, name: str) -> Contents:
    manifest = json.loads(archive.read("explainer.json"))
    if manifest["format"] != FORMAT:
        raise ModelError(
            f"{name} has format {manifest['format']}, written by {manifest['written_by']}; this is deepshap-ir "
            f"{__version__}, which reads format {FORMAT}: use that version, or make and save the explainer again."
        )
    with archive.open("arrays.npz") as opened:
        arrays = dict(np.load(io.BytesIO(opened.read()), allow_pickle=False))
    model = ModelProto()
    model.ParseFromString(archive.read("model.onnx"))
    with archive.open("weights.bin") as opened:
        _fetch_weights(model, opened, name)
    background = manifest["background"]
    return Contents(
        model,
        _unpacked(manifest["settings"], arrays),
        None if background is None else _unpacked(background, arrays),
        _unpacked(manifest["columns"], arrays),
        list(manifest["own_rules"]),
        list(manifest["own_kernels"]),
    )


def _move_weights(model: ModelProto, file: Any) -> None:
    """Write the large tensors of the model, and leave where they are in their place."""
    offset = 0
    for tensor in _get_all_tensors(model):
        if tensor.data_type == TensorProto.STRING:
            continue
        if not tensor.HasField("raw_data") and tensor.ByteSize() >= APART:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
        size = len(tensor.raw_data)
        if size < APART:
            continue
        file.write(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        del tensor.external_data[:]
        for key, value in (("location", "weights.bin"), ("offset", offset), ("length", size)):
            tensor.external_data.add(key=key, value=str(value))
        offset += size


def _fetch_weights(model: ModelProto, file: Any, name: str) -> None:
    for tensor in _get_all_tensors(model):
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        where = {entry.key: entry.value for entry in tensor.external_data}
        if where.get("location") != "weights.bin":
            raise ModelError(f"{name} is damaged: the tensor {tensor.name!r} is in another file.")
        file.seek(int(where["offset"]))
        tensor.raw_data = file.read(int(where["length"]))
        if len(tensor.raw_data) != int(where["length"]):
            raise ModelError(f"{name} is damaged: the tensor {tensor.name!r} is incomplete.")
        del tensor.external_data[:]
        tensor.data_location = TensorProto.DEFAULT


def _packed(value: Any, arrays: list[Array], where: str) -> Any:
    """`value` for JSON; its arrays are put into `arrays`.

    Raises
    ------
    InputError : something in it is neither.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {"map": [[str(key), _packed(item, arrays, f"{where}[{key!r}]")] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [_packed(item, arrays, where) for item in value]
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiubUO":
        # strings come as objects, which npz would pickle
        arrays.append(value.astype(str) if value.dtype.kind == "O" else value)
        return {"array": len(arrays) - 1}
    raise InputError(f"save: {where} has {value!r}, of type {type(value).__name__}, which cannot be written to a file.")


def _unpacked(value: Any, arrays: Mapping[str, Array]) -> Any:
    if isinstance(value, list):
        return [_unpacked(item, arrays) for item in value]
    if isinstance(value, dict) and "array" in value:
        return arrays[f"arr_{value['array']}"]
    if isinstance(value, dict):
        return {key: _unpacked(item, arrays) for key, item in value["map"]}
    return value
