"""A TensorFlow graph without variables -> ONNX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, helper

from deepshap_ir.converters.needs import needed
from deepshap_ir.converters.quiet import quiet
from deepshap_ir.errors import ModelError
from deepshap_ir.importing.runner import one_line
from deepshap_ir.importing.subgraphs import all_names, all_nodes, fresh, rename

LOGGERS = ("tf2onnx", "tensorflow", "absl")

OPSET = 18
"""The newest that tf2onnx writes."""

MARK = "deepshap.mark"
"""Domain of the operator that marks what a layer is given: no optimiser moves anything across it."""

MARKING = "PreventGradient"
"""The TensorFlow operator for it, which passes its input through."""


def mark(tensor: Any) -> Any:
    """Return a tensor that `to_onnx` shows as a node in the domain `MARK`."""
    import tensorflow as tf

    return tf.raw_ops.PreventGradient(input=tensor, message="marked")


@dataclass(frozen=True)
class Frozen:
    """A graph of constants.

    Attributes
    ----------
    graph : a ``GraphDef``.
    inputs, outputs : names of tensors, ``name:0``.
    """

    graph: Any
    inputs: Sequence[str]
    outputs: Sequence[str]

    @staticmethod
    def of_function(concrete: Any, count: int, marked: int = 0) -> Frozen:
        """Freeze a concrete function of `count` arguments; the last `marked` of its outputs come from `mark`.

        Whatever reads a tensor that is marked reads it through the mark.
        """
        graph = _constants(concrete)
        inputs = [t.name for t in concrete.inputs if t.dtype.name != "resource"]
        outputs = [t.name for t in concrete.outputs]
        nodes = {node.name: node for node in graph.node}
        for external, internal in concrete.graph.captures:
            if internal.name in inputs[count:]:
                _make_constant(nodes[_node(internal.name)], external)
        kept = [_reroute(graph, nodes, name) for name in outputs[len(outputs) - marked :]]
        for node in graph.node:
            if node.op == MARKING and node.name not in kept:  # an earlier call of the layer
                node.op = "Identity"
                del node.attr["message"]
        return Frozen(_inlined(graph, outputs), inputs[:count], outputs[: len(outputs) - marked])


def _node(tensor: str) -> str:
    return tensor.removeprefix("^").partition(":")[0]


def _full(tensor: str) -> str:
    return tensor if ":" in tensor else f"{tensor}:0"


def _constants(concrete: Any) -> Any:
    """Return the graph of a concrete function with the values of its variables."""
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2
    from tf2onnx import tf_loader

    try:
        function = convert_variables_to_constants_v2(concrete, lower_control_flow=False, aggressive_inlining=True)
    except ValueError as error:
        if "incompatible with expected resource" not in str(error):
            raise
        # layers with dropout count up a seed when they are called for predictions too
        return tf_loader.fix_freezing_errors(tf_loader.convert_variables_to_constants_large_model(concrete))
    return function.graph.as_graph_def(add_shapes=True)


def _inlined(graph: Any, outputs: Sequence[str]) -> Any:
    """Inline the functions that TensorFlow leaves as they are, as they are compiled."""
    if not any(node.op.endswith("PartitionedCall") for node in graph.node):
        return graph
    import tensorflow as tf
    from tensorflow.core.protobuf import config_pb2, rewriter_config_pb2
    from tensorflow.python.grappler import tf_optimizer

    for holder in (*graph.node, *graph.library.function):
        holder.attr.pop("_XlaMustCompile", None)
    config = config_pb2.ConfigProto()
    options = config.graph_options.rewrite_options
    options.min_graph_nodes = -1
    options.optimizers.append("function")
    options.function_optimization = rewriter_config_pb2.RewriterConfig.AGGRESSIVE
    with tf.Graph().as_default() as known:
        tf.import_graph_def(graph, name="")
    meta = tf.compat.v1.train.export_meta_graph(graph_def=graph, graph=known)
    meta.collection_def["train_op"].node_list.value.extend(outputs)
    return tf_optimizer.OptimizeGraph(config, meta)


def _make_constant(node: Any, value: Any) -> None:
    """Turn a placeholder into a constant."""
    import tensorflow as tf

    array = np.asarray(value)
    node.op = "Const"
    del node.input[:]
    node.attr.clear()
    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(array, dtype=value.dtype))
    node.attr["dtype"].type = value.dtype.as_datatype_enum


def _reroute(graph: Any, nodes: dict[str, Any], tensor: str) -> str:
    """Let whatever reads the tensor that a mark reads, read the mark; return the name of its node."""
    marking = nodes[_node(tensor)]
    while marking.op == "Identity":
        marking = nodes[_node(marking.input[0])]
    assert marking.op == MARKING
    source = _full(marking.input[0])
    while nodes[_node(source)].op == "Identity":
        source = _full(nodes[_node(source)].input[0])
    for node in graph.node:
        for i, name in enumerate(node.input):
            if node is not marking and not name.startswith("^") and _full(name) == source:
                node.input[i] = marking.name
    marking.input[0] = source
    return str(marking.name)


def to_onnx(
    frozen: Frozen, names: Sequence[str], outputs: Sequence[str], shapes: Sequence[Sequence[int | None]], title: str
) -> ModelProto:
    """Convert a graph.

    Parameters
    ----------
    names, outputs : of the inputs and outputs in ONNX.
    shapes : of the inputs, None for the batch.
    title : how messages call the model.

    Raises
    ------
    ModelError : an operator has no counterpart in ONNX.
    MissingDependencyError : tf2onnx is not installed.
    """
    with needed("to explain a TensorFlow model", "keras"):
        import tf2onnx
    from deepshap_ir.converters.tensorflow_operators import handlers

    graph, ends = _with_outputs(frozen)
    try:
        with quiet(LOGGERS):
            model, _ = tf2onnx.convert.from_graph_def(
                graph,
                name="model",
                input_names=list(frozen.inputs),
                output_names=ends,
                opset=OPSET,
                custom_op_handlers=handlers(),
                extra_opset=[helper.make_opsetid(MARK, 1)],
                shape_override={name: list(shape) for name, shape in zip(frozen.inputs, shapes, strict=True)},
            )
    except Exception as error:  # the converter's stages have no error class in common
        raise ModelError(f"tf2onnx cannot convert {title} to ONNX: {one_line(error)}") from error
    _refuse_unknown(model, title)
    _complete(model, frozen, shapes)
    _named(model, dict(zip(frozen.inputs, names, strict=True)), dict(zip(ends, outputs, strict=True)))
    del model.graph.value_info[:]
    return model  # type: ignore[no-any-return]


def _with_outputs(frozen: Frozen) -> tuple[Any, list[str]]:
    """Give every output a node of its own: the same tensor may be asked for twice, or be an input."""
    import tensorflow as tf

    graph = tf.compat.v1.GraphDef()
    graph.CopyFrom(frozen.graph)
    ends = []
    with tf.Graph().as_default() as known:
        tf.import_graph_def(graph, name="")
    for i, name in enumerate(frozen.outputs):
        node = graph.node.add(name=f"deepshap_output_{i}", op="Identity", input=[name])
        node.attr["T"].type = known.get_tensor_by_name(name).dtype.as_datatype_enum
        ends.append(f"{node.name}:0")
    return graph, ends


def _refuse_unknown(model: ModelProto, title: str) -> None:
    """Refuse operators that tf2onnx left as they were."""
    unknown = {}
    for node in all_nodes(model.graph):
        if node.domain == MARK or onnx.defs.has(node.op_type, node.domain):
            continue
        unknown[f"{node.domain}::{node.op_type}" if node.domain else node.op_type] = node.name
    if unknown:
        listed = ", ".join(f"{operator} ({name})" for operator, name in unknown.items())
        raise ModelError(
            f"{title} uses TensorFlow operators that have no counterpart in ONNX: {listed}; compute them with others."
        )


def _complete(model: ModelProto, frozen: Frozen, shapes: Sequence[Sequence[int | None]]) -> None:
    """Declare every input, those that nothing reads too."""
    import tensorflow as tf

    declared = {value.name: value for value in model.graph.input}
    nodes = {node.name: node for node in frozen.graph.node}
    del model.graph.input[:]
    for i, (name, shape) in enumerate(zip(frozen.inputs, shapes, strict=True)):
        dtype = tf.as_dtype(nodes[_node(name)].attr["dtype"].type or nodes[_node(name)].attr["T"].type)
        kind = declared[name].type.tensor_type.elem_type if name in declared else _onnx_type(dtype)
        dims = [f"batch_{i}" if length is None else length for length in shape]
        model.graph.input.append(helper.make_tensor_value_info(name, kind, dims))


def _onnx_type(dtype: Any) -> int:
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype.as_numpy_dtype))


def _named(model: ModelProto, inputs: dict[str, str], outputs: dict[str, str]) -> None:
    """Rename inputs and outputs, and whatever else has one of the new names."""
    for value in model.graph.output:
        del value.type.tensor_type.shape.dim[:]
        value.type.tensor_type.ClearField("shape")
    wanted = [*inputs.values(), *outputs.values()]
    inside = all_names(model.graph)
    taken = {*inside, *wanted}
    mapping = {name: fresh(name, taken) for name in inside.intersection(wanted)}
    rename(model.graph, {**mapping, **inputs, **outputs})
