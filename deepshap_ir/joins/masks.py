"""Masks made of data: minus infinity on the way to a softmax is a large finite number, which has a delta."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np

from deepshap_ir.graph import Graph, Node

LOW = -1e9
"""What masked scores get: the exponential function makes 0 of it, and float32 keeps the other scores beside it."""

MASKED: dict[str, tuple[int, ...] | None] = {
    "Softmax": (0,),
    "LogSoftmax": (0,),
    "Add": None,
    "Concat": None,
    "Expand": (0,),
    "Gather": (0,),
    "Identity": None,
    "Reshape": (0,),
    "Slice": (0,),
    "Squeeze": (0,),
    "Transpose": None,
    "Unsqueeze": (0,),
    "Where": (1, 2),
}
"""Operators that leave masked scores masked -> the inputs at which they may stand, None for all."""


def finite_masks(graph: Graph, keep: Collection[str]) -> Graph:
    """Where a choice between -inf and scores, or 0, has no other way than to a softmax, put `LOW` for -inf.

    A pad that sample or reference alone has, as its token says, is then a player like any other. Where everything is
    masked the file has NaN; that is the file's own fault, and here all elements are alike.
    """
    masks = _masks(graph, keep)
    if not masks:
        return graph
    constants = dict(graph.constants)
    shapes, dtypes = dict(graph.shapes), dict(graph.dtypes)
    nodes = []
    for node in graph.nodes:
        if node.outputs[0] in masks:
            inputs = list(node.inputs)
            for i in (1, 2):
                array = constants.get(inputs[i])
                if array is not None and np.isneginf(array).any():
                    name = f"{node.outputs[0]}/finite_{i}"
                    constants[name] = np.where(np.isneginf(array), array.dtype.type(LOW), array)
                    shapes[name], dtypes[name] = array.shape, array.dtype
                    inputs[i] = name
            node = replace(node, inputs=tuple(inputs))
        nodes.append(node)
    return replace(graph, nodes=tuple(nodes), constants=constants, shapes=shapes, dtypes=dtypes)


def _masks(graph: Graph, keep: Collection[str]) -> set[str]:
    """The outputs of Where nodes with a constant that holds -inf which go to softmaxes alone."""
    elsewhere = set(keep)
    masks = set()
    for node in reversed(graph.nodes):
        hidden = not node.op_type.endswith("Softmax") and any(name in elsewhere for name in node.outputs)
        allowed = MASKED.get(node.operator, ())
        for position, name in enumerate(node.inputs):
            if hidden or (allowed is not None and position not in allowed):
                elsewhere.add(name)
        elsewhere.update(node.captures)
        if node.operator == "Where" and not hidden and _holds_infinity(graph, node):
            masks.add(node.outputs[0])
    return masks


def _holds_infinity(graph: Graph, node: Node) -> bool:
    arrays = [graph.constants[name] for name in node.inputs[1:] if name in graph.constants]
    return any(array.dtype.kind == "f" and np.isneginf(array).any() for array in arrays)
