"""Model files of any framework, as the commands read them."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from deepshap_ir.commands.results import check_folder, whole_file
from deepshap_ir.commands.tables import Input, read_rows
from deepshap_ir.converters import keras_files, torch_files
from deepshap_ir.converters.registry import BUILT_IN, Settings, convert, find
from deepshap_ir.errors import InputError, ModelError
from deepshap_ir.graph import Array
from deepshap_ir.importing.feeds import suggest
from deepshap_ir.importing.load import load_model

ROWS = 3
"""With which a model is traced where shapes stand for data."""


def is_onnx(path: Path) -> bool:
    """Tell whether no converter has anything to do."""
    return find(path) is sys.modules[BUILT_IN["onnx"]]


def open_model(
    path: Path,
    data: Path | None,
    shapes: Mapping[str, tuple[int, ...]],
    output: Sequence[str] = (),
    drop: Collection[str] = (),
) -> tuple[ModelProto, list[str]]:
    """Read a model, converted where it is not ONNX, and what ``--output`` is called in it.

    Parameters
    ----------
    data : rows to trace the model with, and to compare on; ONNX needs none.
    shapes : of its inputs, with the batch, where there are no data.
    output : as given on the command line.
    drop : columns of a table to leave out.

    Raises
    ------
    ModelError : the file cannot be read, or must not be.
    InputError : it needs rows and there are none, or they do not fit.
    """
    if data is not None and not data.exists():
        raise InputError(f"{data}: no such file (the current folder is {os.getcwd()})")
    chosen, top = read_output(output)
    if is_onnx(path):
        return load_model(path), list(output)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # of TensorFlow's C++, which tells of its devices
    source: Any = path
    if data is not None:
        rows = _rows(data, drop)
    else:
        source, rows = _made(path, shapes)
    conversion = convert(source, rows, Settings(output=chosen))
    known = [name for node in conversion.model.graph.node for name in node.output]
    if isinstance(chosen, str) and conversion.output not in known:
        raise InputError(f"--output: the model has no value {chosen!r}.{suggest(chosen, known)}")
    called = [] if conversion.output is None else [str(conversion.output)]
    return load_model(conversion.model), [*called, *([] if top is None else [f"top:{top}"])]


def read_output(given: Sequence[str]) -> tuple[str | int | None, int | None]:
    """What is given as ``--output``: the name or index of one, and K of ``top:K``.

    Raises
    ------
    InputError : more is chosen than one output, or K is no number.
    """
    tops = [text.removeprefix("top:") for text in given if text.startswith("top:")]
    names = [text for text in given if not text.startswith("top:")]
    if len(tops) > 1 or len(names) > 1:
        raise InputError(f"--output is given as {', '.join(given)}: choose one output, and top:K of its entries")
    if tops and not (tops[0].isdecimal() and int(tops[0]) > 0):
        raise InputError(f"--output top:{tops[0]}: write a number of outputs such as top:3")
    chosen = None if not names else int(names[0]) if re.fullmatch(r"-?[0-9]+", names[0]) else names[0]
    return chosen, int(tops[0]) if tops else None


def _rows(path: Path, drop: Collection[str]) -> Any:
    """Rows in the form that a converter takes: an array, a list of those that have no names, or a mapping."""
    if path.suffix.lower() != ".npz":
        return read_rows(path, [Input("x")], drop=drop).arrays["x"]
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = list(archive.files)
    except (OSError, ValueError):
        names = ["x"]  # read_rows says what is wrong
    arrays = read_rows(path, [Input(name) for name in names]).arrays
    if all(name == f"arr_{i}" for i, name in enumerate(names)) or len(names) == 1:
        listed = [arrays[name] for name in names]
        return listed[0] if len(listed) == 1 else listed
    return arrays


def _made(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> tuple[Any, Any]:
    """Return the model, loaded if that tells what its inputs are, and rows that are made up.

    Raises
    ------
    InputError : a shape is not known, or it is given for no input of the model.
    """
    wanted = "give --background FILE, or --shape NAME=1,3,224,224 for every input"
    source: Any = path
    specs: list[keras_files.Spec] = []
    if keras_files.takes(path):
        source = keras_files.load(path)
        specs = keras_files.inputs(source)
    elif torch_files.takes(path):
        source = torch_files.load(path)
    if not specs and not shapes:
        raise InputError(f"{path}: this model is traced with rows, and the file does not say of which shape: {wanted}")
    specs = specs or [keras_files.Spec(name, shape[1:], "float32") for name, shape in shapes.items()]
    known = [spec.name for spec in specs]
    if (unknown := next((name for name in shapes if name not in known), None)) is not None:
        raise InputError(f"--shape: the model has no input {unknown!r}.{suggest(unknown, known)}")
    rng = np.random.default_rng(0)
    arrays: list[Array] = []
    for spec in specs:
        shape = shapes[spec.name][1:] if spec.name in shapes else spec.shape
        size = [length for length in shape if length is not None]
        if len(size) < len(shape):
            raise InputError(f"{path}: the input {spec.name!r} has free dimensions, {shape}: {wanted}")
        is_float = "float" in spec.dtype
        made = rng.normal(size=(ROWS, *size)) if is_float else np.zeros((ROWS, *size))
        arrays.append(made.astype(np.float32 if is_float else spec.dtype))
    return source, arrays[0] if len(arrays) == 1 else dict(zip(known, arrays, strict=True))


def check_model_target(path: Path) -> None:
    """Refuse a file that `write_model` cannot write, before anything is converted.

    Raises
    ------
    InputError : the suffix is not .onnx, or the folder takes no file.
    """
    if path.suffix.lower() != ".onnx":
        raise InputError(f"{path}: cannot be written: a model goes to an .onnx file")
    check_folder(path)


def write_model(path: Path, model: ModelProto) -> None:
    """Write an ONNX model, whole or not at all.

    Raises
    ------
    InputError : the file cannot be written.
    ModelError : it is larger than a file of protocol buffers can be.
    """
    try:
        content = model.SerializeToString()
    except ValueError as error:
        raise ModelError(f"{path}: the model is larger than 2 GiB, the most that one ONNX file holds") from error
    with whole_file(path) as handle:
        handle.write(content)
