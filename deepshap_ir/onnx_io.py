"""Between `Graph` and ONNX protobufs: a graph as a model, attributes as plain Python values and back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

from deepshap_ir.graph import Graph, Node
from deepshap_ir.importing.runner import newest_ir_version
from deepshap_ir.importing.subgraphs import captured, fresh, renamed

INTERNAL_DOMAIN = "deepshap_ir"
"""Domain of nodes that the importer joins: their attribute ``body`` is a `Graph` of standard operators."""


def graph_to_model(graph: Graph, outputs: Sequence[str] | None = None, batch: int | str | None = None) -> ModelProto:
    """Write `graph` as an ONNX model, to run it or to look at it.

    Nodes with a ``body``, joined ones and calls of functions, are replaced by the nodes of it.

    Parameters
    ----------
    graph : a graph of one example.
    outputs : values to return, ``graph.outputs`` by default; any value may be named.
    batch : the length declared for the batch axis of every input in place of 1. The nodes stay those of
        one example: whether they run at another length depends on the model.
    """
    wanted = list(graph.outputs if outputs is None else outputs)
    names = set(graph.shapes) | set(graph.constants) | {name for node in graph.nodes for name in node.outputs}
    constants = dict(graph.constants)
    nodes = [proto for node in graph.nodes for proto in _node_protos(node, names, constants)]
    inputs = []
    for name in graph.inputs:
        dims: list[int | str] = list(graph.shapes[name])
        axis = graph.batch_axes.get(name)
        if batch is not None and axis is not None:
            dims[axis] = batch
        inputs.append(helper.make_tensor_value_info(name, elem_type(graph.dtypes[name]), dims))
    used = {name for proto in nodes for name in (*proto.input, *captured(proto))} | set(wanted)
    proto = GraphProto(name="graph")
    proto.node.extend(nodes)
    proto.input.extend(inputs)
    proto.initializer.extend(
        numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items() if name in used
    )
    proto.output.extend(_value_info(graph, name) for name in wanted)
    opsets = {domain: version for domain, version in graph.opsets.items() if domain != INTERNAL_DOMAIN}
    opsets.setdefault("", 18)
    imports = [helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    ir_version = min(newest_ir_version(), 10)
    return helper.make_model(proto, opset_imports=imports, ir_version=ir_version, producer_name=INTERNAL_DOMAIN)


def elem_type(dtype: np.dtype[Any]) -> int:
    """Return the ONNX element type of `dtype`; object arrays hold strings."""
    if dtype == np.dtype(object):
        return onnx.TensorProto.STRING
    return int(helper.np_dtype_to_tensor_dtype(dtype))


def _value_info(graph: Graph, name: str) -> onnx.ValueInfoProto:
    if name not in graph.dtypes:
        return onnx.ValueInfoProto(name=name)
    return helper.make_tensor_value_info(name, elem_type(graph.dtypes[name]), graph.shapes.get(name))


def _node_protos(node: Node, names: set[str], constants: dict[str, Any]) -> Iterator[NodeProto]:
    if node.domain == INTERNAL_DOMAIN and node.op_type == "Scan":
        yield _loop(node, names, constants)
        return
    if isinstance(node.attributes.get("body"), Graph):
        yield from _inlined(node, names, constants)
        return
    outputs = list(node.outputs)
    proto = helper.make_node(node.op_type, list(node.inputs), outputs, name=node.name, domain=node.domain)
    for key, value in node.attributes.items():
        proto.attribute.append(attribute_proto(key, value))
    yield proto


def _loop(node: Node, names: set[str], constants: dict[str, Any]) -> NodeProto:
    """Return the ONNX Scan of an internal one; what its body captures is read by its outer name."""
    body: Graph = node.attributes["body"]
    fed = node.attributes["n_states"] + node.attributes["n_sequences"]
    inside = [fresh(f"{node.name}/{name}", names) for name in body.inputs[:fed]]
    results = [fresh(f"{node.name}/{name}", names) for name in body.outputs]
    once = replace(node, inputs=(*inside, *node.inputs[fed:]), outputs=tuple(results))
    graph = helper.make_graph(
        list(_inlined(once, names, constants)),
        f"{node.name}/body",
        [
            helper.make_tensor_value_info(new, elem_type(body.dtypes[old]), None)
            for new, old in zip(inside, body.inputs, strict=False)
        ],
        [
            helper.make_tensor_value_info(new, elem_type(body.dtypes[old]), None)
            for new, old in zip(results, body.outputs, strict=True)
        ],
    )
    outputs = [name or fresh(f"{node.name}/unused", names) for name in node.outputs]
    count, reverse = node.attributes["n_sequences"], node.attributes["reverse"]
    return scan_node(node.inputs[:fed], outputs, graph, count, reverse, node.name)


def scan_node(
    inputs: Sequence[str],
    outputs: Sequence[str],
    body: onnx.GraphProto,
    n_sequences: int,
    reverse: bool,
    name: str = "",
) -> onnx.NodeProto:
    """Return an ONNX Scan over the first axis of its sequences, to the last element or from it."""
    node = helper.make_node("Scan", inputs, outputs, name=name, body=body, num_scan_inputs=n_sequences)
    stacked = len(outputs) - (len(inputs) - n_sequences)
    if reverse:
        node.attribute.append(helper.make_attribute("scan_input_directions", [1] * n_sequences))
        if stacked:
            node.attribute.append(helper.make_attribute("scan_output_directions", [1] * stacked))
    return node


def _inlined(node: Node, names: set[str], constants: dict[str, Any]) -> Iterator[NodeProto]:
    """Yield the nodes of the body of `node`, every inner value under a name that is free in the model."""
    body: Graph = node.attributes["body"]
    mapping = {"": ""}
    mapping.update(zip(body.inputs, node.inputs, strict=True))
    mapping.update({inner: outer for inner, outer in zip(body.outputs, node.outputs, strict=True) if outer})

    def outer(name: str) -> str:
        if name not in mapping:
            mapping[name] = fresh(f"{node.name}/{name}", names)
        return mapping[name]

    for name, array in body.constants.items():
        constants[outer(name)] = array
    for inner in body.nodes:
        attributes = {
            key: renamed(value, {name: outer(name) for name in inner.captures})
            if isinstance(value, GraphProto)
            else value
            for key, value in inner.attributes.items()
        }
        copy = replace(
            inner,
            name=f"{node.name}/{inner.name}",
            inputs=tuple(map(outer, inner.inputs)),
            outputs=tuple(map(outer, inner.outputs)),
            captures=tuple(map(outer, inner.captures)),
            attributes=attributes,
        )
        yield from _node_protos(copy, names, constants)


def attribute_proto(name: str, value: Any) -> onnx.AttributeProto:
    """Return the attribute `name` of an ONNX node, from the plain Python value that a `Node` keeps."""
    if isinstance(value, np.ndarray):
        return helper.make_attribute(name, numpy_helper.from_array(value))
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], np.ndarray):
        return helper.make_attribute(name, [numpy_helper.from_array(array) for array in value])
    if isinstance(value, (list, tuple)) and not value:
        return helper.make_attribute(name, [], attr_type=onnx.AttributeProto.INTS)
    return helper.make_attribute(name, value)


def attribute_value(attribute: onnx.AttributeProto) -> Any:
    """Return an attribute as the plain Python value that a `Node` keeps."""
    value = helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return _text(value)
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    if attribute.type == onnx.AttributeProto.STRINGS:
        return [_text(item) for item in value]
    if attribute.type == onnx.AttributeProto.TENSORS:
        return [numpy_helper.to_array(item) for item in value]
    return list(value) if attribute.type in _LISTS else value


_LISTS = {onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS, onnx.AttributeProto.GRAPHS}


def _text(value: bytes) -> str | bytes:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value
