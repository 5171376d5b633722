"""One run of a model with every value as an output, and the static graph that follows from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, ValueInfoProto, numpy_helper

from deepshap_ir.errors import ModelError
from deepshap_ir.graph import Array, Graph, Node
from deepshap_ir.importing.dependence import Dependence, needed
from deepshap_ir.importing.runner import Runner
from deepshap_ir.importing.subgraphs import captured, fresh
from deepshap_ir.onnx_io import attribute_value, elem_type, graph_to_model


def trace(model: ModelProto, feeds: Mapping[str, Any], what: str = "the model") -> dict[str, Any]:
    """Run `model` once and return all values of its main graph by name, initializers and feeds included.

    Raises
    ------
    ModelError : the model does not load or does not run on `feeds`.
    """
    every = ModelProto()
    every.CopyFrom(model)
    del every.graph.output[:]
    names = [name for node in model.graph.node for name in node.output if name]
    every.graph.output.extend(ValueInfoProto(name=name) for name in names)
    values: dict[str, Any] = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    values.update(feeds)
    if names:
        values.update(run_model(every, what, feeds))
    return {
        name: value if isinstance(value, list) or value is None else np.asarray(value) for name, value in values.items()
    }


def run_model(model: ModelProto, what: str, feeds: Mapping[str, Any]) -> dict[str, Any]:
    """Run by onnxruntime, or by ``onnx.reference`` where a body does not say its shapes, which onnxruntime demands."""
    try:
        return Runner(model, what).run(feeds)
    except ModelError as error:
        if "Subgraph must have the shape set" not in str(error):
            raise
        return Runner(model, what, reference=True).run(feeds)


def build_graph(
    model: ModelProto,
    values: Mapping[str, Any],
    found: Dependence,
    inputs: Sequence[str],
    outputs: Sequence[str],
    batch_axes: Mapping[str, int | None],
) -> Graph:
    """Keep the nodes between `inputs` and `outputs`; what does not depend on the inputs becomes a constant.

    So does what has no elements, the past of an empty cache say.

    Parameters
    ----------
    values : all values of `model` in one run, from `trace`.
    found : what depends on the inputs.
    """
    reached = needed(model.graph, outputs, found)
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    taken = set(values)
    nodes: list[Node] = []
    constants: dict[str, Array] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: dict[str, np.dtype[Any]] = {}

    def note(name: str, value: Any) -> None:
        if isinstance(value, np.ndarray):
            shapes[name] = value.shape
            dtypes[name] = value.dtype

    def fix(name: str, value: Any) -> None:
        constants[name] = value
        note(name, value)

    empty = {}  # what stands for inputs without elements where they are read
    for name in inputs:
        note(name, values[name])
        if _is_empty(values[name]):
            empty[name] = fresh(f"{name}__empty", taken)
            fix(empty[name], values[name])
    for proto in model.graph.node:
        if not any(name in reached for name in proto.output):
            continue
        made = [name for name in proto.output if name]
        if all(_is_empty(values[name]) and name not in outputs for name in made):
            for name in made:
                fix(name, values[name])
            continue
        node = _node(proto, reached, opsets, values)
        node = replace(node, inputs=tuple(empty.get(name, name) for name in node.inputs))
        for name in node.reads:
            if name not in constants and not found.depends([name]):
                fix(name, values[name])
        renamed = {name: fresh(f"{name}__unread", taken) for name in node.outputs if name and not found.depends([name])}
        for name in filter(None, node.outputs):
            note(renamed.get(name, name), values[name])
        nodes.append(replace(node, outputs=tuple(renamed.get(name, name) for name in node.outputs)))
    return Graph(tuple(inputs), tuple(outputs), tuple(nodes), constants, shapes, dtypes, dict(batch_axes), opsets)


def _is_empty(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.size == 0


def _node(proto: NodeProto, reached: set[str], opsets: Mapping[str, int], values: Mapping[str, Any]) -> Node:
    version = opsets.get(proto.domain, 1)
    node = Node(
        name=proto.name,
        op_type=proto.op_type,
        inputs=tuple(proto.input),
        outputs=_read_outputs(proto, version, reached),
        attributes={a.name: attribute_value(a) for a in proto.attribute},
        domain=proto.domain,
        version=version,
        captures=captured(proto),
    )
    if node.operator == "CastLike":
        to = elem_type(values[node.outputs[0]].dtype)
        attributes = {key: value for key, value in node.attributes.items() if key != "to"} | {"to": to}
        return replace(node, op_type="Cast", inputs=node.inputs[:1], attributes=attributes)
    return node


def _read_outputs(proto: NodeProto, version: int, reached: set[str]) -> tuple[str, ...]:
    """Return the outputs, ``""`` for optional ones that nothing reads (the mask of Dropout).

    Not those of Attention: onnxruntime wants its present key and value wherever it is given past ones.
    """
    if proto.op_type == "Attention":
        return tuple(proto.output)
    try:
        formal = onnx.defs.get_schema(proto.op_type, version, proto.domain).outputs
    except onnx.defs.SchemaError:
        return tuple(proto.output)
    optional = onnx.defs.OpSchema.FormalParameterOption.Optional
    names = [
        "" if position < len(formal) and formal[position].option == optional and name not in reached else name
        for position, name in enumerate(proto.output)
    ]
    while len(names) > 1 and not names[-1]:
        names.pop()
    return tuple(names)


def tidy(graph: Graph) -> Graph:
    """Drop nodes that the outputs do not need, and constants, shapes and dtypes of values that are gone."""
    upstream = graph.upstream(graph.outputs)
    nodes = tuple(node for node in graph.nodes if any(name in upstream for name in node.outputs))
    names = {name for node in nodes for name in (*node.reads, *node.outputs)} | set(graph.inputs) | set(graph.outputs)
    return replace(
        graph,
        nodes=nodes,
        constants={name: array for name, array in graph.constants.items() if name in names},
        shapes={name: shape for name, shape in graph.shapes.items() if name in names},
        dtypes={name: dtype for name, dtype in graph.dtypes.items() if name in names},
    )


def complete_shapes(graph: Graph, outputs: Iterable[str] | None = None) -> Graph:
    """Fill in shapes and dtypes that a pass left out, by running the graph once on ones.

    For passes that add nodes: they name the new values and leave their shapes to this.

    Parameters
    ----------
    outputs : the values to look at; by default all that nodes make and that have no shape yet.
    """
    made = [name for node in graph.nodes for name in node.outputs if name]
    missing = [name for name in (made if outputs is None else outputs) if name not in graph.shapes]
    if not missing:
        return graph
    feeds = {name: np.ones(graph.shapes[name], graph.dtypes[name]) for name in graph.inputs}
    values = Runner(graph_to_model(graph, missing), "the graph").run(feeds)
    tensors = {name: np.asarray(value) for name, value in values.items() if not isinstance(value, list)}
    return replace(
        graph,
        shapes=graph.shapes | {name: array.shape for name, array in tensors.items()},
        dtypes=graph.dtypes | {name: array.dtype for name, array in tensors.items()},
    )
