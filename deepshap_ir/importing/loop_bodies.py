"""The Scans of a settled file as the one loop of the engine, `deepshap_ir::Scan`, whose body is a `Graph`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from onnx import ModelProto

from deepshap_ir.engine.value import INTERNAL
from deepshap_ir.errors import UnsupportedOperatorError
from deepshap_ir.graph import Graph, Node
from deepshap_ir.importing.calls import keep_calls
from deepshap_ir.importing.control_flow import body_model
from deepshap_ir.importing.dependence import dependence, operator, standing
from deepshap_ir.importing.trace import build_graph, tidy, trace

Change = Callable[[Graph], Graph]


def import_bodies(graph: Graph, values: Mapping[str, Any], model: ModelProto, change: Change) -> Graph:
    """Return `graph` with every Scan as a loop of the engine.

    What a body reads from outside becomes an input of the loop where it varies, and a constant of the body elsewhere.

    Parameters
    ----------
    values : all values of the graph in one run.
    model : the file, settled.
    change : what is done to each body.
    """
    nodes = tuple(
        _loop(node, graph, values, model, change) if node.operator == "Scan" else node for node in graph.nodes
    )
    return replace(graph, nodes=nodes)


def _loop(node: Node, graph: Graph, values: Mapping[str, Any], model: ModelProto, change: Change) -> Node:
    body, sequences = node.attributes["body"], node.attributes["num_scan_inputs"]
    n = len(node.inputs) - sequences
    reverse = any(node.attributes.get("scan_input_directions") or ())
    fed = {value.name: values[name] for value, name in zip(body.input, node.inputs, strict=True)}
    for value in list(body.input)[n:]:
        fed[value.name] = np.asarray(fed[value.name][-1 if reverse else 0])
    captured = [name for name in node.captures if name not in graph.constants]
    fed |= {name: values[name] for name in captured}
    fixed = {name: graph.constants[name] for name in node.captures if name in graph.constants}
    inside = body_model(body, fed, fixed, model)
    attributes = {"n_states": n, "n_sequences": sequences, "reverse": reverse}
    attributes["body"] = _body_graph(inside, fed, node, change)
    return replace(
        node, inputs=(*node.inputs, *captured), attributes=attributes, domain=INTERNAL, version=1, captures=()
    )


def _body_graph(model: ModelProto, fed: Mapping[str, Any], node: Node, change: Change) -> Graph:
    outputs = [value.name for value in model.graph.output]
    values = trace(model, fed, f"the body of {node}")
    found = dependence(model.graph, fed, values)
    refusals = standing(model.graph, outputs, found)
    if refusals:
        lines = [f"  {operator(r.node)} node {r.node.name!r}: {r.reason}" for r in refusals]
        raise UnsupportedOperatorError(f"{node} cannot be explained:\n" + "\n".join(lines), filter(None, node.outputs))
    graph = build_graph(model, values, found, list(fed), outputs, dict.fromkeys(fed))
    nodes = []
    for name in outputs:
        if not found.depends([name]):  # it needs a node all the same
            graph.constants[f"{name}/value"] = values[name]
            for target in (name, f"{name}/value"):
                graph.shapes[target], graph.dtypes[target] = values[name].shape, values[name].dtype
            nodes.append(Node(name, "Identity", (f"{name}/value",), (name,), version=graph.opsets[""]))
    graph = replace(graph, nodes=(*graph.nodes, *nodes))
    return tidy(change(keep_calls(import_bodies(graph, values, model, change), model.graph, values, change)))
