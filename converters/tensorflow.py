"""TensorFlow without Keras: modules, functions, loaded SavedModels, and tensors of graphs with sessions."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

from deepshap_ir.converters.arguments import by_parameters, cast
from deepshap_ir.converters.compare import some_rows
from deepshap_ir.converters.needs import needed
from deepshap_ir.converters.outputs import leaves
from deepshap_ir.converters.registry import Conversion, Settings, comes_from
from deepshap_ir.converters.remembered import content, remembered, shapes
from deepshap_ir.converters.restoring import kept
from deepshap_ir.errors import InputError
from deepshap_ir.importing.feeds import suggest

ACCEPTS = (
    "a tf.Module, tf.function, concrete function or loaded SavedModel, or a pair (input tensor or list of them, output "
    "tensor) of a TensorFlow 1 graph with session="
)

TAKES_SESSION = True

FUNCTIONS = ("ConcreteFunction", "Function", "PolymorphicFunction")


def takes(model: Any) -> bool:
    """Tell whether `model` is an object of TensorFlow that can be called, or a pair of its tensors."""
    if isinstance(model, tuple | list):
        return len(model) == 2 and _is_tensor(
            model[0][0] if isinstance(model[0], list | tuple) and model[0] else model[0]
        )
    trackable = comes_from(model, "tensorflow", "AutoTrackable")
    return trackable or any(comes_from(model, "tensorflow", name) for name in FUNCTIONS)


def _is_tensor(value: Any) -> bool:
    return comes_from(value, "tensorflow", "Tensor")


def convert(model: Any, background: Any, settings: Settings) -> Conversion:
    """Export what TensorFlow can call, with rows of the background; it is left as it was.

    Raises
    ------
    InputError : the background does not fit, or it is not known what to call.
    ModelError : the exporter fails.
    MissingDependencyError : tensorflow or tf2onnx is not installed.
    """
    with needed("to explain a TensorFlow model", "keras"):
        import tensorflow as tf
        import tf2onnx  # noqa: F401
    from deepshap_ir.converters.tensorflow_export import Subject

    if isinstance(model, tuple | list):
        from deepshap_ir.converters.tensorflow_sessions import convert_pair

        return convert_pair(model[0], model[1], background, settings)
    if settings.session is not None or settings.learning_phase_flags is not None:
        raise InputError("session= and learning_phase_flags= belong to pairs of tensors of TensorFlow 1 graphs.")
    function = _function(model)
    parameters, dtypes, keyword = _parameters(function)
    title = f"the {type(model).__name__} {getattr(model, 'name', '')!r}".replace(" ''", "")
    found = by_parameters([name for name in parameters if name != "training"], background, title, keyword)
    axes = {name: settings.batch_axes.get(name, 0) if a.ndim else None for name, a in found.arrays.items()}
    variables = list(getattr(model, "variables", ()))
    floats = next((v.dtype.name for v in variables if v.dtype.is_floating), "float32")
    rows = some_rows(found.arrays, axes)
    rows = {name: cast(array, dtypes.get(name), name, floats) for name, array in rows.items()}
    constants = {"training": False} if "training" in parameters else {}

    def call(tensors: Sequence[Any]) -> tuple[dict[str, Any], list[Any]]:
        args, kwargs = found.pack(tensors)
        return dict(leaves(function(*args, **kwargs, **constants), tf.is_tensor)), []

    subject = Subject(title, found.names, axes, call, lambda: _unchanged(model, variables), nullcontext)
    observed = subject.observe(rows, settings.output)

    def conversion(exported: Any) -> Conversion:
        return Conversion(
            model=exported.model,
            output=exported.output,
            hold=settings.hold,
            rows=rows,
            run=observed.run,
            axes=axes,
            tolerance=observed.tolerance,
        )

    if not variables:  # what else the function reads is not known
        return conversion(observed.export(rows))
    key = (content(v.numpy() for v in variables), shapes(rows, axes), settings.output)
    return remembered(model, key, lambda: observed.export(rows), conversion)


def _function(model: Any) -> Any:
    """Return what is to be called: the object itself, or the signature of a loaded SavedModel.

    Raises
    ------
    InputError : it cannot be called, or has several signatures.
    """
    if callable(model):
        functional = any(comes_from(model, "tensorflow", name) for name in FUNCTIONS)
        return model if functional else model.__call__
    signatures = dict(getattr(model, "signatures", {}) or {})
    if "serving_default" in signatures:
        return signatures["serving_default"]
    if len(signatures) == 1:
        return next(iter(signatures.values()))
    if signatures:
        raise InputError(
            f"the SavedModel has several signatures, none of which is the default; explain one of them, "
            f"loaded.signatures[name].{suggest('', list(signatures))}"
        )
    raise InputError(f"an object of type {type(model).__name__} cannot be called, and has no signatures.")


def _parameters(function: Any) -> tuple[list[str], dict[str, str], bool]:
    """Return the names of the parameters, their dtypes where they are known, and whether they go by keyword alone."""
    signature = getattr(function, "structured_input_signature", None)
    if signature is not None:  # a concrete function
        given, named = signature
        if not given:
            return list(named), {name: spec.dtype.name for name, spec in named.items()}, True
        names = [getattr(spec, "name", None) or f"argument_{i}" for i, spec in enumerate(given)]
        dtypes = {name: spec.dtype.name for name, spec in zip(names, given, strict=True) if hasattr(spec, "dtype")}
        return names, dtypes, False
    names = getattr(getattr(function, "function_spec", None), "arg_names", None) or [
        p.name
        for p in inspect.signature(function).parameters.values()
        if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    return [name for name in names if name not in ("self", "mask")], {}, False


def specs(model: Any) -> dict[str, Any]:
    """Return the specs of the signature of a loaded SavedModel by name; none where it has no such signature."""
    given, named = getattr(_function(model), "structured_input_signature", None) or ((), {})
    return {} if given else dict(named)


@contextmanager
def _unchanged(model: Any, variables: Sequence[Any]) -> Iterator[None]:
    """Call a module without a trace in its variables and attributes."""
    with ExitStack() as stack:
        for variable in variables:
            stack.callback(_restore, variable, variable.numpy().copy())
        if not any(comes_from(model, "tensorflow", name) for name in FUNCTIONS):
            stack.enter_context(kept([model, *getattr(model, "submodules", ())]))
        yield


def _restore(variable: Any, saved: Any) -> None:
    if variable.numpy().tobytes() != saved.tobytes():
        variable.assign(saved)
