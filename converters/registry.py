"""Which converter takes a model, and what it makes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Protocol

import numpy as np

from deepshap_ir.converters.compare import TOLERANCE, compare
from deepshap_ir.errors import InputError, ModelError
from deepshap_ir.importing.feeds import Array

BUILT_IN = {
    "keras": "deepshap_ir.converters.keras",
    "keras_files": "deepshap_ir.converters.keras_files",
    "tensorflow": "deepshap_ir.converters.tensorflow",
    "pytorch": "deepshap_ir.converters.pytorch",
    "torch_files": "deepshap_ir.converters.torch_files",
    "scikit-learn": "deepshap_ir.converters.scikit_learn",
    "onnx": "deepshap_ir.converters.onnx_file",
}
"""Name -> module, in the order in which they are asked; the file is last, as it takes any path."""


@dataclass(frozen=True)
class Settings:
    """What a user asked of `deepshap_ir.DeepExplainer` that a converter may have to know.

    Attributes
    ----------
    output : name or index of the explained output.
    at : names of the places that get the attributions.
    hold : names of what keeps the sample's own value, or a mapping from names to constants.
    batch_axes : input name -> axis of the batch, None where it has none.
    session, learning_phase_flags : of TensorFlow 1 graphs.
    """

    output: str | int | None = None
    at: tuple[str, ...] = ()
    hold: Sequence[str] | Mapping[str, Any] = ()
    batch_axes: Mapping[str, int | None] = field(default_factory=dict)
    session: Any = None
    learning_phase_flags: Any = None


@dataclass(frozen=True)
class Conversion:
    """A model as ONNX, and what must be known to explain it in the user's words.

    Attributes
    ----------
    model : as `deepshap_ir.importing.load.load_model` takes it.
    output : name or index of the explained output in it; None for its only float output.
    at : names of the places that get the attributions, none for the inputs.
    hold : what of the user's ``hold=`` is left for the importer.
    constants : arguments of the original that are not arrays, and are part of the ONNX model.
    rows : some rows of the background by input name, on which to compare.
    run : the original: arrays by input name -> arrays by output name.
    axes : input name -> axis of the batch in `rows`, None where it has none.
    tolerance : of the comparison, relative to the largest output.
    """

    model: Any
    output: str | int | None = None
    at: tuple[str, ...] = ()
    hold: Sequence[str] | Mapping[str, Any] = ()
    constants: Mapping[str, Any] = field(default_factory=dict)
    rows: Mapping[str, Array] = field(default_factory=dict)
    run: Callable[[Mapping[str, Array]], Mapping[str, Array]] | None = None
    axes: Mapping[str, int | None] = field(default_factory=dict)
    tolerance: float = TOLERANCE

    def data(self, data: Any, what: str = "background") -> Any:
        """Return `data` without the arguments that are constants of the conversion.

        Raises
        ------
        InputError : one has another value than it had for the background.
        """
        if not self.constants or not isinstance(data, Mapping):
            return data
        for name, value in self.constants.items():
            if name in data and not np.array_equal(data[name], value):
                raise InputError(
                    f"{what}: {name!r} is {data[name]!r}, but {value!r} in the background; an argument that is no "
                    f"array is a constant of the model: make another explainer for this value."
                )
        return {name: value for name, value in data.items() if name not in self.constants}

    def check(self) -> None:
        """Compare the ONNX model with the original on `rows`, at two batch sizes.

        Raises
        ------
        ModelError : they differ; the message has both numbers.
        """
        if self.run is not None:
            compare(self.model, self.run, self.rows, self.axes, self.tolerance)


class Converter(Protocol):
    """A module, or any object, that turns the models of one framework into ONNX.

    It imports its framework in `convert` alone.

    Attributes
    ----------
    ACCEPTS : what it takes, in words, for a message.
    """

    ACCEPTS: str

    def takes(self, model: Any, /) -> bool:
        """Tell whether `model` is of this framework, without importing it."""

    def convert(self, model: Any, background: Any, settings: Settings, /) -> Conversion:
        """Turn `model` into ONNX, with what `background` tells of its inputs.

        Raises
        ------
        InputError, ModelError, MissingDependencyError
        """


def comes_from(model: object, package: str, name: str | None = None) -> bool:
    """Tell whether a class of `package`, called `name` if that is given, is among the classes of `model`."""
    return any(
        cls.__module__.partition(".")[0] == package and name in (None, cls.__name__) for cls in type(model).__mro__
    )


@cache
def converters() -> tuple[Converter, ...]:
    """Return the converters in the order in which they are asked: those of other packages, then the built-in ones.

    Raises
    ------
    ModelError : one that a package installs cannot be loaded.
    """
    found: list[Any] = []
    for entry in entry_points(group="deepshap_ir.converters"):
        if entry.value in BUILT_IN.values():
            continue
        try:
            found.append(entry.load())
        except Exception as error:
            package = entry.dist.name if entry.dist else "a package"
            raise ModelError(
                f"the converter {entry.value!r} of {package} cannot be loaded: {error}; update or uninstall it"
            ) from error
    return (*found, *(import_module(module) for module in BUILT_IN.values()))


def find(model: Any, settings: Settings = Settings()) -> Converter:
    """Return the converter for `model`.

    Raises
    ------
    InputError : there is none, the message lists what is accepted; or it knows nothing of a setting.
    """
    converter = next((converter for converter in converters() if converter.takes(model)), None)
    if converter is None:
        kind = type(model)
        accepted = "\n".join(f"  {converter.ACCEPTS}" for converter in converters())
        raise InputError(
            f"a model of type {kind.__module__}.{kind.__qualname__} cannot be explained; give one of\n{accepted}"
        )
    tf1 = settings.session is not None or settings.learning_phase_flags is not None
    if tf1 and not getattr(converter, "TAKES_SESSION", False):
        raise InputError(
            f"session= and learning_phase_flags= belong to TensorFlow 1 graphs, not to {converter.ACCEPTS}"
        )
    return converter


def convert(model: Any, background: Any, settings: Settings) -> Conversion:
    """Turn `model` into ONNX and compare the result with it.

    Raises
    ------
    InputError : nothing takes `model`, or names or data do not fit it.
    ModelError : it cannot be exported, or what came out is another function.
    MissingDependencyError : a package that the conversion needs is not installed.
    """
    conversion = find(model, settings).convert(model, background, settings)
    conversion.check()
    return conversion
