"""Keras models: of Keras 3, on TensorFlow and on torch, and of tf_keras."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from deepshap_ir.converters.arguments import cast
from deepshap_ir.converters.compare import HALF_TOLERANCE, some_rows
from deepshap_ir.converters.keras_calls import (
    Call,
    backend,
    call_of,
    inputs_of,
    is_layer,
    is_symbol,
    layers,
    library,
    title,
)
from deepshap_ir.converters.keras_pairs import between
from deepshap_ir.converters.keras_state import precision, single_precision, state, unchanged
from deepshap_ir.converters.needs import needed
from deepshap_ir.converters.registry import Conversion, Settings, comes_from
from deepshap_ir.converters.remembered import remembered, shapes
from deepshap_ir.errors import InputError
from deepshap_ir.importing.feeds import suggest

ACCEPTS = (
    "a Keras model (Keras 3 on TensorFlow or torch, tf_keras), a pair (input tensor or list of them, output tensor) "
    "of one, or a pair (model, layer) to explain at the inputs of a layer"
)


TOLERANCES = {"float16": HALF_TOLERANCE, "bfloat16": 5e-2}
"""Of a model that computes with 11 or 8 binary digits; ONNX is run in float32."""


def takes(model: Any) -> bool:
    """Tell whether `model` is a Keras layer or model, or a pair that begins with one or with its tensors."""
    if is_layer(model):
        return True
    if not isinstance(model, tuple | list) or len(model) != 2:
        return False
    first = model[0][0] if isinstance(model[0], tuple | list) and model[0] else model[0]
    if isinstance(first, tuple | list):  # the input of an InputLayer is an empty list
        first = model[1][0] if isinstance(model[1], tuple | list) and model[1] else model[1]
        return is_symbol(first)
    return is_layer(first) or is_symbol(first)


def convert(model: Any, background: Any, settings: Settings) -> Conversion:
    """Export a Keras model, as it is used for predictions, with rows of the background; it is left as it was.

    Raises
    ------
    InputError : the background does not fit the model, or the output or the layer is not there.
    ModelError : the exporter fails.
    MissingDependencyError : what the model's backend needs is not installed.
    """
    if comes_from(model, "tf_keras") and any(comes_from(x, "tensorflow", "Tensor") for x in inputs_of(model) or ()):
        from deepshap_ir.converters import tensorflow

        return tensorflow.convert((model.inputs, model.outputs), background, settings)  # a graph of TensorFlow 1
    layer, owner = None, model
    names: tuple[str, ...] = ()
    if not is_layer(model):
        if is_layer(model[0]):
            owner, layer = model[0], _layer(*model)
            if settings.at:
                raise InputError("a layer is given beside the model, and at= too: give one of them.")
            model = owner
        else:
            pair = between(*model)
            model, names, owner = pair.model, pair.names, pair.owner
    call = call_of(model, background, settings, names)
    axes = {name: settings.batch_axes.get(name, 0) if a.ndim else None for name, a in call.arrays.items()}
    floats = library(model).backend.floatx()
    rows = {name: cast(a, call.dtypes.get(name), name, floats) for name, a in some_rows(call.arrays, axes).items()}
    kind = backend(model)
    if kind not in ("tensorflow", "torch"):
        raise InputError(
            f"{title(model)} runs on Keras's backend {kind!r}; only 'tensorflow' and 'torch' can be explained: save "
            f"the model, set KERAS_BACKEND=tensorflow, and load it."
        )
    stateful = next((layer.name for layer in layers(model) if getattr(layer, "stateful", False) is True), None)
    if stateful is not None:
        raise InputError(
            f"{title(model)} is stateful ({stateful!r}): what it returns depends on the calls before. Make a copy with "
            f"stateful=False and the same weights."
        )
    if any(str(getattr(v.dtype, "name", v.dtype)) == "bfloat16" for v in model.variables):
        raise InputError(
            f"{title(model)} keeps weights in bfloat16, which its exporter does not write: make a copy in float32 with "
            f"the same weights."
        )
    observed = (_with_torch if kind == "torch" else _with_tensorflow)(call, axes, layer, rows, settings.output)
    key = (state(model), shapes(rows, axes), settings.output, id(layer), names, id(owner))
    low = precision(model)

    def exported() -> Any:
        if kind == "tensorflow":
            return observed.export(rows)
        from deepshap_ir.converters.torch_export import export

        with single_precision(model):
            return export(observed, rows)

    def conversion(found: Any) -> Conversion:
        return Conversion(
            model=found.model,
            output=found.output,
            at=found.at,
            hold=settings.hold,
            rows=rows,
            run=observed.run,
            axes=axes,
            tolerance=max(observed.tolerance, TOLERANCES.get(low, 0.0)) if low else observed.tolerance,
        )

    return remembered(owner, key, exported, conversion)


def _layer(model: Any, layer: Any) -> Any:
    """Return the layer of a pair, which may be given by its name.

    Raises
    ------
    InputError : the model has no such layer.
    """
    below = [other for other in layers(model) if other is not model]
    if isinstance(layer, str):
        found = [other for other in below if layer in (other.name, getattr(other, "path", None))]
        if len(found) != 1:
            problem = "no layer" if not found else f"{len(found)} layers"
            names = [getattr(other, "path", other.name) if len(found) > 1 else other.name for other in below]
            raise InputError(f"{title(model)} has {problem} {layer!r}.{suggest(layer, names)}")
        return found[0]
    if not is_layer(layer):
        raise InputError(
            f"the second of a pair (model, layer) is a layer or the name of one, not {type(layer).__name__}."
        )
    if all(layer is not other for other in below):
        names = [other.name for other in below]
        raise InputError(f"the layer {layer.name!r} is not among those of {title(model)}.{suggest(layer.name, names)}")
    return layer


def _with_tensorflow(call: Call, axes: Any, layer: Any, rows: Any, output: str | int | None) -> Any:
    with needed("to explain a Keras model on TensorFlow", "keras"):
        import tensorflow as tf
        import tf2onnx  # noqa: F401
    from deepshap_ir.converters.tensorflow_export import Subject

    model = call.model

    def called(tensors: Sequence[Any]) -> tuple[dict[str, Any], list[Any]]:
        with _watched(layer) as kept:
            found = call(tensors, tf.is_tensor)
        return found, kept

    subject = Subject(
        title=title(model),
        names=call.names,
        axes=axes,
        call=called,
        guard=lambda: unchanged(model),
        exporting=lambda: single_precision(model),
    )
    return subject.observe(rows, output, None if layer is None else layer.name)


@contextmanager
def _watched(layer: Any) -> Iterator[list[Any]]:
    """Mark and keep what the last call of a layer is given, while this lasts."""
    import tensorflow as tf

    from deepshap_ir.converters.tensorflow_graph import mark

    kept: list[Any] = []
    if layer is None:
        yield kept
        return
    original = layer.call

    def call(*args: Any, **kwargs: Any) -> Any:
        given: dict[int, Any] = {}

        def marked(value: Any) -> Any:
            if not tf.is_tensor(value) or not (value.dtype.is_floating or value.dtype.is_integer):
                return value
            if id(value) not in given:
                copy = mark(value)
                if getattr(value, "_keras_mask", None) is not None:
                    copy._keras_mask = value._keras_mask
                given[id(value)] = (value, copy)
            return given[id(value)][1]

        args, kwargs = tf.nest.map_structure(marked, (args, kwargs))
        copies = [copy for _, copy in given.values()]
        kept[:] = [copy for copy in copies if copy.dtype.is_floating] or copies
        return original(*args, **kwargs)

    attributes = vars(layer)
    missing = object()
    before = attributes.get("call", missing)
    attributes["call"] = call
    try:
        yield kept
    finally:
        if before is missing:
            del attributes["call"]
        else:
            attributes["call"] = before


def _with_torch(call: Call, axes: Any, layer: Any, rows: Any, output: str | int | None) -> Any:
    with needed("to explain a Keras model on torch", "torch"):
        import onnxscript  # noqa: F401  (torch's exporter needs it)
        import torch
    from deepshap_ir.converters.torch_export import Subject

    class Called(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = call.model

        def forward(self, *tensors: torch.Tensor) -> dict[str, torch.Tensor]:
            return call(tensors, torch.is_tensor)

    Called.__name__ = title(call.model)
    return Subject(Called(), layer, tuple(call.names), (), {}, axes).observe(rows, output)
