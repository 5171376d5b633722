"""`If` on a constant: the taken branch becomes part of the graph around it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, helper

from deepshap_ir.subgraphs import all_nodes, fresh, replaced


def inline_branches(model: ModelProto, conditions: Mapping[str, Any]) -> ModelProto:
    """Return a copy of `model` where every `If` of the main graph with a known condition is its taken branch.

    Parameters
    ----------
    conditions : values of conditions, by name.
    """
    result = ModelProto()
    result.CopyFrom(model)
    node_names = {node.name for node in all_nodes(model.graph)}
    nodes = []
    for node in model.graph.node:
        if node.op_type == "If" and node.domain == "" and node.input[0] in conditions:
            condition = bool(np.reshape(conditions[node.input[0]], -1)[0])
            nodes.extend(_branch(node, condition, node_names))
        else:
            nodes.append(node)
    result.graph.CopyFrom(replaced(model.graph, nodes))
    return result


def _branch(node: NodeProto, condition: bool, node_names: set[str]) -> list[NodeProto]:
    """Return the nodes of a branch. Its names are free outside: `normalise` makes names unique over all subgraphs."""
    wanted = "then_branch" if condition else "else_branch"
    branch = next(attribute.g for attribute in node.attribute if attribute.name == wanted)
    nodes = []
    for tensor in branch.initializer:
        nodes.append(helper.make_node("Constant", [], [tensor.name], name=fresh(tensor.name, node_names), value=tensor))
    nodes.extend(branch.node)
    for inner, outer in zip(branch.output, node.output, strict=True):
        if outer:
            name = fresh(f"{node.name}/{inner.name}", node_names)
            nodes.append(helper.make_node("Identity", [inner.name], [outer], name=name))
    return nodes
