"""Max pooling ahead of an activation that rises: fewer numbers go through the activation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import replace

import numpy as np

from deepshap_ir.graph import Graph, Node
from deepshap_ir.importing.trace import tidy
from deepshap_ir.joins.rewriting import Rewriter

RISING = ("Relu", "LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "Softplus", "Clip")
"""Activations that never fall, and that are flat nowhere but below: then the largest elements are the same ones."""

HUGE = 1e37
"""An upper bound of Clip that lets every number pass is of at least this size."""


def pool_first(graph: Graph, keep: Collection[str]) -> Graph:
    """``max f(x) = f(max x)`` for f that rises: MaxPool moves ahead of f where it is the only reader of f.

    The winners and what they get stay the same by the rules for all of these, SHAP's for max pooling:
    ``(f(x_a) - f(x0_b)) / (f(x_j) - f(x0_j)) * (f(x_j) - f(x0_j)) / (x_j - x0_j)`` is, without the two that cancel,
    ``(f(x_a) - f(x0_b)) / (x_a - x0_b) * (x_a - x0_b) / (x_j - x0_j)``. For other rules it is a change.
    """
    readers = Counter(name for node in graph.nodes for name in node.reads)

    def moved(graph: Rewriter, node: Node) -> list[Node] | None:
        if node.operator != "MaxPool" or any(node.outputs[1:]):
            return None
        activation = graph.made_by(node.inputs[0], *RISING)
        if activation is None or readers[node.inputs[0]] != 1 or not _rises(graph, activation):
            return None
        output = node.outputs[0]
        pooled = graph.value(graph.shape(output), graph.graph.dtypes[output], f"{activation.inputs[0]}/pooled")
        return [
            replace(node, inputs=activation.inputs[:1], outputs=(pooled,)),
            replace(activation, inputs=(pooled, *activation.inputs[1:]), outputs=(output,)),
        ]

    return tidy(Rewriter(graph, keep).run([moved]))


def _rises(graph: Rewriter, node: Node) -> bool:
    """Whether this activation, with its attributes and operands, never falls, and is alike for all of a plane."""
    if node.op_type == "PRelu":
        slope = graph.graph.constants.get(node.inputs[1])
        spatial = len(graph.shape(node.inputs[0])) - 2
        return slope is not None and bool(np.all(slope >= 0)) and all(n == 1 for n in slope.shape[-spatial:])
    if node.op_type == "Clip":
        low, high = (*node.inputs[1:], "", "")[:2]
        bounds = graph.number(low), graph.number(high)
        return node.version >= 11 and (not low or bounds[0] is not None) and (not high or (bounds[1] or 0) > HUGE)
    return all(node.attributes.get(name, 0.0) >= 0 for name in ("alpha", "gamma"))
