"""Keras models in files, ``.keras`` and ``.h5``, read without running what is in them, and SavedModel folders."""

from __future__ import annotations

import json
import os
import zipfile
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from deepshap_ir.converters.registry import Conversion, Settings
from deepshap_ir.errors import MissingDependencyError, ModelError
from deepshap_ir.importing.runner import one_line

ACCEPTS = "the path of a Keras model (.keras, .h5) or of a SavedModel folder"

SUFFIXES = (".keras", ".h5", ".hdf5")


def takes(model: Any) -> bool:
    """Tell whether `model` is the path of a Keras file or of a SavedModel."""
    if not isinstance(model, str | os.PathLike):
        return False
    path = Path(os.fspath(model))
    return path.suffix.lower() in SUFFIXES or _is_saved_model(path)


def _is_saved_model(path: Path) -> bool:
    return any((path / name).is_file() for name in ("saved_model.pb", "saved_model.pbtxt"))


def convert(model: Any, background: Any, settings: Settings) -> Conversion:
    """Load a model from a file and convert it.

    Raises
    ------
    InputError, ModelError, MissingDependencyError
        As `load` and the converters of models.
    """
    from deepshap_ir.converters import keras, tensorflow

    loaded = load(model)
    if keras.takes(loaded):
        return keras.convert(loaded, background, settings)
    return tensorflow.convert(loaded, background, settings)


def load(path: str | os.PathLike[str]) -> Any:
    """Return the Keras model, or what TensorFlow restores of a SavedModel.

    Python code in a file (Lambda layers) is not run.

    Raises
    ------
    ModelError : there is no such file, it holds weights alone or Python code, or Keras cannot read it.
    MissingDependencyError : keras or tensorflow is not installed.
    """
    place = Path(os.fspath(path))
    if not place.exists():
        raise ModelError(f"{str(place)!r}: there is no such file.")
    if _is_saved_model(place):
        try:
            return _library("tensorflow").saved_model.load(str(place))
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise ModelError(f"TensorFlow cannot load the SavedModel {str(place)!r}: {one_line(error)}") from error
    config, version = _inside(place)
    if _has_code(config):
        raise ModelError(
            f"{str(place)!r} holds Python code (a Lambda layer), which is not run: if you trust the file, load it "
            f"yourself, keras.models.load_model(path, safe_mode=False), and explain the model."
        )
    old = version.startswith(("1.", "2."))
    failures = []
    for name in ("keras", "tf_keras") if old else ("keras",):
        try:
            return _library(name).models.load_model(place, compile=False, safe_mode=True)
        except Exception as error:  # whatever the classes of its layers raise
            failures.append(f"{name}: {one_line(_first(error))}")
    raise ModelError(
        f"{str(place)!r}, saved by Keras {version or 'of unknown version'}, cannot be loaded ({'; '.join(failures)}). "
        f"If it has classes of your own, load it yourself with custom_objects= and explain the model; models of Keras "
        f"2 need the package tf_keras."
    )


@dataclass(frozen=True)
class Spec:
    """An input of a loaded model.

    Attributes
    ----------
    name : as the model calls it.
    shape : of one row, None for a dimension that it leaves free.
    dtype : by name.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str


def inputs(model: Any) -> list[Spec]:
    """Return the inputs of a loaded model in order; none where it does not say all of their shapes."""
    from deepshap_ir.converters import keras, keras_calls, tensorflow

    if keras.takes(model):
        symbols = [(keras_calls.name_of(symbol), symbol) for symbol in keras_calls.inputs_of(model) or ()]
    else:
        symbols = list(tensorflow.specs(model).items())
    if any(getattr(symbol.shape, "rank", 1) in (None, 0) for _, symbol in symbols):
        return []
    return [
        Spec(name, tuple(symbol.shape)[1:], str(getattr(symbol.dtype, "name", symbol.dtype)))
        for name, symbol in symbols
    ]


def _first(error: BaseException) -> BaseException:
    """Return the error that led to `error`: the later ones only print what is around it."""
    while error.__context__ is not None:
        error = error.__context__
    return error


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingDependencyError(
            f"to read this file, {error.name} is needed: pip install 'deepshap-ir[keras]'"
        ) from error


def _inside(path: Path) -> tuple[Any, str]:
    """Return the description of the model in a file, and the version of Keras that wrote it.

    Raises
    ------
    ModelError : it is no such file, or has no description of a model.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                config = json.loads(archive.read("config.json"))
                return config, str(json.loads(archive.read("metadata.json")).get("keras_version", ""))
        h5py = _library("h5py")
        with h5py.File(path, "r") as file:
            version, config = file.attrs.get("keras_version", ""), file.attrs.get("model_config")
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ModelError(f"{str(path)!r} is no file of a Keras model: {one_line(error)}") from error
    if config is None:
        raise ModelError(
            f"{str(path)!r} holds weights alone: build the model, load them with model.load_weights(path), and explain "
            f"the model."
        )
    return json.loads(config), version.decode() if isinstance(version, bytes) else str(version)


def _has_code(config: Any) -> bool:
    """Tell whether a description has a Lambda layer, or a function in bytes."""
    if isinstance(config, dict):
        named = config.get("class_name") in ("Lambda", "__lambda__") or config.get("function_type") == "lambda"
        return named or any(map(_has_code, config.values()))
    return isinstance(config, list) and any(map(_has_code, config))
