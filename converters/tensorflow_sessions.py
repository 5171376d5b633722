"""Tensors of a TensorFlow 1 graph, with the values that variables have in a session."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from deepshap_ir.converters.arguments import by_names, cast
from deepshap_ir.converters.compare import some_rows
from deepshap_ir.converters.outputs import choose
from deepshap_ir.converters.registry import Conversion, Settings, comes_from
from deepshap_ir.converters.remembered import remembered
from deepshap_ir.converters.tensorflow_graph import Frozen, to_onnx
from deepshap_ir.errors import InputError
from deepshap_ir.importing.feeds import Array
from deepshap_ir.importing.runner import one_line

TITLE = "the TensorFlow graph"


def convert_pair(inputs: Any, outputs: Any, background: Any, settings: Settings) -> Conversion:
    """Export the graph between tensors.

    Raises
    ------
    InputError : the tensors are of no graph, or not connected, or there is no session for it.
    ModelError : the exporter fails.
    """
    import tensorflow as tf

    starts, ends = _listed(inputs, "first"), _listed(outputs, "second")
    graph = ends[0].graph
    if any(tensor.graph is not graph for tensor in (*starts, *ends)):
        raise InputError("the tensors of the pair are of different graphs.")
    if comes_from(graph, "tensorflow", "FuncGraph"):
        raise InputError("the tensors of the pair are inside a function: explain the function itself.")
    session = _session(settings.session, graph)
    found = {tensor.op.name if tensor.name.endswith(":0") else tensor.name: tensor for tensor in ends}
    chosen = choose(found, settings.output, lambda tensor: bool(tensor.dtype.is_floating), TITLE)
    ends = [found[name] for name in chosen]
    flags = _flags(settings.learning_phase_flags, ends)
    missing = _missing([*starts, *flags], ends)
    if missing:
        raise InputError(
            f"the output {ends[0].name!r} is not connected to the inputs "
            f"({', '.join(repr(t.name) for t in starts)}) alone: it also needs {', '.join(map(repr, missing))}; give "
            f"them in the list of inputs."
        )
    names = [tensor.op.name for tensor in starts]
    names = names if len(set(names)) == len(names) else [tensor.name for tensor in starts]
    for name, tensor in zip(names, starts, strict=True):
        if tensor.dtype.name == "string":
            raise InputError(f"the input {name!r} takes strings, which have no differences; begin after them.")
    arrays = by_names(names, background, TITLE)
    axes = {name: settings.batch_axes.get(name, 0) if a.ndim else None for name, a in arrays.items()}
    rows = some_rows(arrays, axes)
    rows = {name: cast(rows[name], t.dtype.name, name) for name, t in zip(names, starts, strict=True)}
    outputs = [f"{name}_output" if name in names else name for name in chosen]

    def run(given: Mapping[str, Array]) -> dict[str, Array]:
        feeds = {tensor: given[name] for name, tensor in zip(names, starts, strict=True)}
        try:
            values = session.run(ends, {**feeds, **dict.fromkeys(flags, False)})
        except tf.errors.FailedPreconditionError as error:
            raise InputError(
                f"{TITLE} has variables without a value in the session ({_reason(error)}): run their initializer, or "
                f"restore a checkpoint, first."
            ) from error
        except (tf.errors.OpError, ValueError, TypeError) as error:
            raise InputError(f"{TITLE} fails on rows of the background: {_reason(error)}") from error
        return dict(zip(outputs, values, strict=True))

    run(rows)
    frozen = _frozen(session, starts, ends, flags)
    shapes = [[None if i == axes[name] else n for i, n in enumerate(rows[name].shape)] for name in names]
    inside = settings.output if isinstance(settings.output, str) and settings.output not in found else None
    key = (frozen.graph.SerializeToString(deterministic=True), str(shapes), tuple(outputs))
    return remembered(
        ends[0].op,
        key,
        lambda: to_onnx(frozen, names, outputs, shapes, TITLE),
        lambda model: Conversion(model, inside or outputs[0], hold=settings.hold, rows=rows, run=run, axes=axes),
    )


def _reason(error: Exception) -> str:
    """Return what went wrong, without the lines of Python that made the node."""
    text = re.search(r"^Node: .*\n(.+)", str(error), re.MULTILINE)
    return one_line(Exception(text[1]) if text else error)


def _listed(value: Any, which: str) -> list[Any]:
    found = list(value) if isinstance(value, list | tuple) else [value]
    for tensor in found:
        if not comes_from(tensor, "tensorflow", "Tensor") or comes_from(tensor, "tensorflow", "EagerTensor"):
            raise InputError(
                f"the {which} of a pair of TensorFlow tensors must be a tensor of a graph or a list of them, not "
                f"{type(tensor).__name__}."
            )
    if not found:
        raise InputError(f"the {which} of a pair of TensorFlow tensors is an empty list.")
    return found


def _session(session: Any, graph: Any) -> Any:
    """Return the session that is given, the default one, or that of tf_keras.

    Raises
    ------
    InputError : there is none, or it is of another graph.
    """
    import tensorflow as tf

    session = session if session is not None else tf.compat.v1.get_default_session()
    if session is None and "tf_keras" in sys.modules and not tf.executing_eagerly():
        session = import_module("tf_keras.src.backend").get_session()  # its public module has none
    if session is None:
        raise InputError("tensors of a TensorFlow 1 graph need session=, or a default session, for their variables.")
    if session.graph is not graph:
        raise InputError("the session is of another graph than the tensors; give session=.")
    return session


def _flags(given: Any, ends: Sequence[Any]) -> list[Any]:
    """Return the switches between training and inference: the given ones, or those that Keras makes."""
    if given is not None:
        return list(given) if isinstance(given, list | tuple) else [given]
    return [
        tensor
        for tensor in _above(ends)
        if tensor.op.type.startswith("Placeholder")
        and "learning_phase" in tensor.name
        and tensor.dtype.name == "bool"
        and tensor.shape.rank == 0
    ]


def _above(ends: Sequence[Any], stop: Sequence[Any] = ()) -> list[Any]:
    """Return the tensors that `ends` are computed from, no further than `stop`."""
    seen = {tensor.name: tensor for tensor in stop}
    found, stack = [], list(ends)
    while stack:
        tensor = stack.pop()
        if tensor.name in seen:
            continue
        seen[tensor.name] = tensor
        found.append(tensor)
        stack.extend(tensor.op.inputs)
    return found


def _missing(starts: Sequence[Any], ends: Sequence[Any]) -> list[str]:
    return [tensor.op.name for tensor in _above(ends, starts) if tensor.op.type == "Placeholder"]


def _frozen(session: Any, starts: Sequence[Any], ends: Sequence[Any], flags: Sequence[Any]) -> Frozen:
    """Return the graph from placeholders for `starts` to `ends`, with the flags off and variables as they are."""
    import tensorflow as tf

    util = tf.compat.v1.graph_util
    graph = session.graph.as_graph_def(add_shapes=True)
    graph = util.extract_sub_graph(graph, [t.op.name for t in (*ends, *starts)])
    cut = {tensor.name: f"deepshap_start_{i}" for i, tensor in enumerate(starts)}
    named = {flag.op.name for flag in flags}
    for node in graph.node:
        for i, name in enumerate(node.input):
            full = name if ":" in name else f"{name}:0"
            node.input[i] = cut.get(full, name)
        if node.name in named:
            node.op = "Const"
            del node.input[:]
            node.attr.clear()
            node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(False))
            node.attr["dtype"].type = tf.bool.as_datatype_enum
        elif node.op == "PlaceholderWithDefault" and f"{node.name}:0" not in cut:
            dtype = node.attr["dtype"].type
            node.op = "Identity"
            node.attr.clear()
            node.attr["T"].type = dtype
    _refuse_branches(graph)
    for tensor in starts:
        node = graph.node.add(name=cut[tensor.name], op="Placeholder")
        node.attr["dtype"].type = tensor.dtype.as_datatype_enum
    ends_names = [cut.get(tensor.name, tensor.name) for tensor in ends]
    wanted = [*(name.partition(":")[0] for name in ends_names), *cut.values()]
    try:
        with session.graph.as_default():
            constant = util.convert_variables_to_constants(session, util.extract_sub_graph(graph, wanted), wanted)
    except Exception as error:  # tensorflow's errors of uninitialised variables, among others
        raise InputError(f"the variables of {TITLE} cannot be read from the session: {one_line(error)}") from error
    outputs = [name if ":" in name else f"{name}:0" for name in ends_names]
    return Frozen(constant, [f"{name}:0" for name in cut.values()], outputs)


def _refuse_branches(graph: Any) -> None:
    """Refuse branches and loops that read variables: TensorFlow does not freeze them, and can end the process."""
    bodies = {function.signature.name: function for function in graph.library.function}
    for node in graph.node:
        names = [value.func.name for value in node.attr.values() if value.func.name in bodies]
        if any(inner.op == "ReadVariableOp" for name in names for inner in bodies[name].node_def):
            raise InputError(
                f"{node.name!r} ({node.op}) of {TITLE} reads variables within a branch or loop, which cannot be "
                f"frozen. If that is Keras's switch between training and inference, fix it before the model is built, "
                f"tf_keras.backend.set_learning_phase(0); or save the model, and load it without TensorFlow 1."
            )
