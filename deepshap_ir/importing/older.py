"""What no converter keeps or no later pass reads: Scan as opset 8 had it, and optionals of which it is known what is
in them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

from deepshap_ir.errors import ModelError
from deepshap_ir.importing.subgraphs import all_names, all_nodes, bodies, fresh
from deepshap_ir.onnx_io import attribute_value


def scans_of_opset_8(model: ModelProto) -> None:
    """Raise a model of opset 8 that has Scans to opset 9, in place.

    In opset 8 a Scan runs over axis 1 of a batch, with a body for one example. One example is all that the importer
    looks at, so its axis is squeezed away before the Scan, and put back after it.

    Raises
    ------
    ModelError : a Scan has sequence lengths, or a BatchNormalization statistics of single positions (`spatial` = 0).
    """
    nodes = [node for node in all_nodes(model.graph) if node.domain == ""]
    if not any(node.op_type == "Scan" for node in nodes):
        return
    for node in nodes:
        if node.op_type == "Scan" and node.input[0]:
            raise ModelError(
                f"Scan node {node.name or node.output[0]!r} of opset 8 has sequence lengths, which later opsets do not "
                f"have. Export the model at opset 9 or later."
            )
        if node.op_type == "BatchNormalization" and any(a.name == "spatial" and not a.i for a in node.attribute):
            raise ModelError(
                f"BatchNormalization node {node.name or node.output[0]!r}: spatial = 0 is known to opset 8 alone."
            )
    names = all_names(model.graph)
    _in_every_graph(model.graph, names)
    for entry in model.opset_import:
        if entry.domain == "":
            entry.version = 9


def _in_every_graph(graph: GraphProto, names: set[str]) -> None:
    made: list[NodeProto] = []
    for node in graph.node:
        for body in bodies(node):
            _in_every_graph(body, names)
        made += _scan_9(node, names) if node.op_type == "Scan" and node.domain == "" else [node]
    made = [_copy(node) for node in made]
    del graph.node[:]
    graph.node.extend(made)


def _scan_9(node: NodeProto, names: set[str]) -> list[NodeProto]:
    given = {a.name: attribute_value(a) for a in node.attribute}
    inputs = [fresh(f"{name}/example", names) for name in node.input[1:]]
    outputs = [fresh(f"{name}/example", names) if name else "" for name in node.output]
    attributes = {"body": given["body"], "num_scan_inputs": given["num_scan_inputs"]}
    if given.get("directions"):
        attributes["scan_input_directions"] = given["directions"]
    before = [helper.make_node("Squeeze", [a], [b], axes=[0]) for a, b in zip(node.input[1:], inputs, strict=True)]
    pairs = [(a, b) for a, b in zip(outputs, node.output, strict=True) if b]
    after = [helper.make_node("Unsqueeze", [a], [b], axes=[0]) for a, b in pairs]
    return [*before, helper.make_node("Scan", inputs, outputs, name=node.name, **attributes), *after]


def open_optionals(model: ModelProto) -> None:
    """Replace, in place, what asks for or reads an optional that Optional makes: it is known what is in it."""
    if any(node.op_type == "Optional" for node in all_nodes(model.graph)):
        _open(model.graph, {})


def _open(graph: GraphProto, outside: Mapping[str, str]) -> None:
    """`outside` is optional -> what is in it, ``""`` for nothing."""
    inside = dict(outside)
    for node in graph.node:
        kind = node.op_type if node.domain == "" else ""
        source = node.input[0] if node.input else ""
        if kind == "Optional":
            inside[node.output[0]] = source
        elif kind == "Identity" and source in inside:
            inside[node.output[0]] = inside[source]
        elif kind == "OptionalHasElement" and (not source or source in inside):
            has = numpy_helper.from_array(np.array(bool(source and inside[source])))
            node.CopyFrom(helper.make_node("Constant", [], list(node.output), name=node.name, value=has))
        elif kind == "OptionalGetElement" and inside.get(source):
            node.CopyFrom(helper.make_node("Identity", [inside[source]], list(node.output), name=node.name))
        for body in bodies(node):
            own = {value.name for value in body.input}
            _open(body, {name: value for name, value in inside.items() if name not in own})


def _copy(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy
