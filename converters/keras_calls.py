"""How Keras models, of Keras 3 and of tf_keras, are called, and what their inputs and outputs are named."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deepshap_ir.converters.arguments import Pack, by_names, by_parameters
from deepshap_ir.converters.outputs import leaves
from deepshap_ir.converters.registry import Settings, comes_from
from deepshap_ir.errors import InputError
from deepshap_ir.importing.feeds import Array

PACKAGES = ("keras", "tf_keras")

LOW = ("float16", "bfloat16")


def is_layer(value: Any) -> bool:
    """Tell whether `value` is a layer, which models are too."""
    return any(comes_from(value, package, "Layer") for package in PACKAGES)


def is_symbol(value: Any) -> bool:
    """Tell whether `value` is a symbolic tensor of a Keras graph, what ``model.input`` gives."""
    return any(comes_from(value, package, "KerasTensor") for package in PACKAGES)


def library(value: Any) -> Any:
    """Return the module, ``keras`` or ``tf_keras``, that a layer or symbolic tensor comes from."""
    return sys.modules["tf_keras" if comes_from(value, "tf_keras") else "keras"]


def backend(value: Any) -> str:
    """Return what a layer or symbolic tensor computes with: ``"tensorflow"``, ``"torch"``, ``"jax"``, ..."""
    return "tensorflow" if comes_from(value, "tf_keras") else str(library(value).backend.backend())


def title(model: Any) -> str:
    """Return how messages call a model."""
    return f"{type(model).__name__} {model.name!r}"


def layers(model: Any) -> list[Any]:
    """Return a model and all layers below it."""
    return list(model._flatten_layers())


def unique(names: Sequence[str]) -> list[str]:
    """Return names without repetition: ``a``, ``a_1``."""
    found: list[str] = []
    for name in names:
        free, i = name, 0
        while free in found:
            i += 1
            free = f"{name}_{i}"
        found.append(free)
    return found


@dataclass(frozen=True)
class Call:
    """A model, and how tensors are given to it.

    Attributes
    ----------
    names : of the inputs.
    arrays : the background by input name, whole.
    dtypes : input name -> dtype that the model wants; none for those of the data.
    pack : tensors in the order of `names` -> arguments and keyword arguments.
    output_names : as the model calls them; none where it does not.
    """

    model: Any
    names: Sequence[str]
    arrays: Mapping[str, Array]
    dtypes: Mapping[str, str]
    pack: Pack
    output_names: Sequence[str] = ()

    def __call__(self, tensors: Sequence[Any], is_tensor: Callable[[Any], bool]) -> dict[str, Any]:
        """Call the model as it is used for predictions, and return its outputs by name."""
        args, kwargs = self.pack(tensors)
        if _has_training_argument(self.model):
            kwargs["training"] = False
        returned = self.model(*args, **kwargs)
        found = dict(leaves(returned, is_tensor))
        if not isinstance(returned, Mapping) and len(found) == len(self.output_names):
            found = dict(zip(self.output_names, found.values(), strict=True))
        return found


def _has_training_argument(model: Any) -> bool:
    if comes_from(model, "tf_keras"):
        return bool(model._call_spec.expects_training_arg)
    return bool(model._call_has_training_arg)


def call_of(model: Any, background: Any, settings: Settings, names: Sequence[str] = ()) -> Call:
    """Match the background with what a model takes.

    Parameters
    ----------
    names : of the inputs of a functional model, if they are not its own.

    Raises
    ------
    InputError : they do not match, or the model was never built.
    """
    if not model.built:
        raise InputError(
            f"{title(model)} has never been called or built, so its weights are not there yet: call it on some rows "
            f"first, or load its weights."
        )
    held = settings.hold if isinstance(settings.hold, Mapping) else {}
    symbols = inputs_of(model)
    if symbols is None:
        return _of_signature(model, background, held)
    return _of_graph(model, symbols, background, names)


def inputs_of(model: Any) -> list[Any] | None:
    """Return the symbolic inputs of a functional or sequential model, None for any other layer."""
    if not hasattr(model, "_nested_inputs") and not hasattr(model, "inputs"):
        return None
    found = getattr(model, "inputs", None)
    return list(found) if found else None


def name_of(symbol: Any) -> str:
    """Return the name of the input layer, or of the layer that a symbolic tensor comes from."""
    return str(symbol._keras_history[0].name)


def _of_graph(model: Any, symbols: Sequence[Any], background: Any, given: Sequence[str]) -> Call:
    tree = _tree(model)
    structure = getattr(model, "_nested_inputs", None) if comes_from(model, "tf_keras") else _structure(model)
    places = tree.pack_sequence_as(structure, list(range(len(symbols)))) if structure is not None else None
    names = list(given) or unique([name_of(symbol) for symbol in symbols])
    if isinstance(places, Mapping) and not given:
        found = {place: name for name, place in leaves(places, lambda value: isinstance(value, int))}
        names = [found[i] for i in range(len(symbols))]
    dtypes = {name: str(_dtype_name(symbol)) for name, symbol in zip(names, symbols, strict=True)}
    for name, symbol in zip(names, symbols, strict=True):
        if comes_from(symbol, "tf_keras", "RaggedKerasTensor") or getattr(symbol, "ragged", False):
            raise InputError(f"the input {name!r} of {title(model)} is ragged; pad it to one length and mask the rest.")
        if getattr(symbol, "sparse", False):
            raise InputError(f"the input {name!r} of {title(model)} is sparse; make it dense.")
        if dtypes[name] == "string":
            raise InputError(
                f"the input {name!r} of {title(model)} takes strings, which have no differences; explain the model "
                f"from the numbers on that they become, with a pair (tensor, output)."
            )
    dtypes = {name: "float32" if dtype in LOW else dtype for name, dtype in dtypes.items()}
    arrays = by_names(names, background, title(model))

    def pack(tensors: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if structure is None:
            return (tensors[0] if len(tensors) == 1 else list(tensors),), {}
        return (tree.pack_sequence_as(structure, list(tensors)),), {}

    outputs = unique(list(getattr(model, "output_names", ()) or ()))
    return Call(model, names, arrays, dtypes, pack, outputs)


def _tree(model: Any) -> Any:
    if comes_from(model, "tf_keras"):
        import tensorflow as tf

        return tf.nest
    return library(model).tree


def _structure(model: Any) -> Any:
    functional = getattr(model, "_functional", None) or model
    return getattr(functional, "_inputs_struct", None)


def _dtype_name(symbol: Any) -> str:
    return str(getattr(symbol.dtype, "name", symbol.dtype))


def _of_signature(model: Any, background: Any, held: Mapping[str, Any]) -> Call:
    found = by_parameters([name for name in _parameters(model) if name not in held], background, title(model))
    return Call(model, found.names, found.arrays, {}, found.pack)


def _parameters(model: Any) -> Iterator[str]:
    for parameter in inspect.signature(model.call).parameters.values():
        kinds = (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if parameter.kind not in kinds and parameter.name not in ("training", "mask"):
            yield parameter.name
