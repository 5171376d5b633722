"""What must not change while a Keras model is looked at, and what a conversion depends on."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from deepshap_ir.converters.keras_calls import LOW, layers, library
from deepshap_ir.converters.registry import comes_from
from deepshap_ir.converters.remembered import content
from deepshap_ir.converters.restoring import kept, restore


@contextmanager
def unchanged(model: Any) -> Iterator[None]:
    """Call a model without a trace: its weights, attributes and lists are as they were, however it ends."""
    with ExitStack() as stack:
        for variable in model.non_trainable_variables:
            stack.callback(_restore_variable, variable, value(variable).copy())
        stack.enter_context(kept(layers(model)))
        if comes_from(model, "tf_keras"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it is deprecated, and the only way to reach layers within a call
                stack.enter_context(library(model).backend.learning_phase_scope(0))
        yield


def value(variable: Any) -> Any:
    """Return the value of a variable of any Keras."""
    if hasattr(variable, "detach"):
        return variable.detach().cpu().numpy()
    array = variable.value
    array = array() if callable(array) else array
    return array.detach().cpu().float().numpy() if hasattr(array, "detach") else np.asarray(array)


def _restore_variable(variable: Any, saved: Any) -> None:
    if value(variable).tobytes() != saved.tobytes():
        variable.assign(saved)


@contextmanager
def single_precision(model: Any) -> Iterator[None]:
    """Let layers that keep float32 and compute in a lower precision compute in float32."""
    with ExitStack() as stack:
        for layer in layers(model):
            policy = layer.dtype_policy
            if policy.compute_dtype not in LOW or policy.variable_dtype != "float32":
                continue
            attributes = vars(layer)
            stack.callback(restore, attributes, attributes.copy())
            attributes["_dtype_policy"] = _single(layer)
            if "_compute_dtype_object" in attributes:  # tf_keras
                import tensorflow as tf

                attributes["_compute_dtype_object"] = tf.float32
        yield


def _single(layer: Any) -> Any:
    keras = library(layer)
    if comes_from(layer, "tf_keras"):
        return keras.mixed_precision.Policy("float32")
    return keras.dtype_policies.get("float32")


def precision(model: Any) -> str | None:
    """Return the lower precision in which a layer of the model computes, if one does."""
    found = {layer.dtype_policy.compute_dtype for layer in layers(model)}
    return next((name for name in reversed(LOW) if name in found), None)


def state(model: Any) -> Hashable:
    """Return what a model computes with: the content of its weights, and plain attributes of its layers."""
    plain = (bool, int, float, str, bytes, type(None))
    attributes = tuple(
        (id(layer), *((key, held) for key, held in vars(layer).items() if isinstance(held, plain) and key != "_called"))
        for layer in layers(model)
    )
    functions = tuple(id(held) for layer in layers(model) for held in vars(layer).values() if callable(held))
    return content(map(value, model.variables)), attributes, functions
