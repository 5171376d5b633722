"""Layer and RMS normalisation spelled out: joined, as their parts divide by differences where the whole does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from deepshap_ir.engine.value import INTERNAL
from deepshap_ir.graph import Node
from deepshap_ir.joins.rewriting import Pattern, Rewriter, subgraph


@dataclass(frozen=True)
class Spread:
    """``1 / sqrt(mean(d^2) + epsilon)``, perhaps times a constant.

    Attributes
    ----------
    deviation : the name of d; None where the mean square is spelled ``mean(x^2) - mean(x)^2``.
    source : the name of x where d is ``x - mean x``, else None.
    """

    deviation: str | None
    source: str | None
    axes: tuple[int, ...]
    epsilon: float
    scale: str = ""


def quotient(graph: Rewriter, node: Node) -> list[Node] | None:
    """``d / sqrt(mean(d^2) + eps)``, also as a product."""
    if node.operator not in ("Div", "Mul"):
        return None
    for top, bottom in (node.inputs, node.inputs[::-1])[: 2 if node.operator == "Mul" else 1]:
        spread = _root(graph, bottom) if node.operator == "Div" else _inverse(graph, bottom)
        if spread is None or graph.shape(node.outputs[0]) != graph.shape(top):
            continue
        centred = spread.source is not None and top in (spread.deviation, _deviation_of(graph, top, spread))
        if not centred and top != spread.deviation:
            continue
        return _joined(graph, node, spread, spread.source if centred and spread.source else top, centred)
    return None


def expanded(graph: Rewriter, node: Node) -> list[Node] | None:
    """``x r + (bias - mean(x) r)`` and ``x r - mean(x) r`` with ``r = scale / sqrt(var + eps)``."""
    if node.operator not in ("Add", "Sub"):
        return None
    for left, right in (node.inputs, node.inputs[::-1])[: 2 if node.operator == "Add" else 1]:
        product = graph.made_by(left, "Mul")
        rest = graph.made_by(right, "Sub") if node.operator == "Add" else None
        bias, shift = (rest.inputs[0], rest.inputs[1]) if rest is not None else ("", right)
        taken = graph.made_by(shift, "Mul")
        if product is None or taken is None or (node.operator == "Add" and bias not in graph.graph.constants):
            continue
        for x, r in (product.inputs, product.inputs[::-1]):
            spread = _inverse(graph, r)
            mean = taken.inputs[1 - taken.inputs.index(r)] if r in taken.inputs else ""
            if spread is None or spread.source != x or graph.reduced(mean, "ReduceMean") != (x, spread.axes):
                continue
            return _joined(graph, node, spread, x, True, bias)
    return None


def affine(graph: Rewriter, node: Node) -> list[Node] | None:
    """A constant factor or term of a joined normalisation becomes its scale or bias."""
    if node.operator not in ("Mul", "Add"):
        return None
    for value, constant in (node.inputs, node.inputs[::-1]):
        norm = graph.made_by(value, "LayerNormalization", f"{INTERNAL}::RMSNormalization")
        if norm is None or len(norm.outputs) > 1 or constant not in graph.graph.constants:
            continue
        fitted = _over(graph, constant, norm.inputs[0], graph.shape(norm.inputs[1]))
        if fitted is None or graph.shape(node.outputs[0]) != graph.shape(value):
            continue
        if node.operator == "Add" and (len(norm.inputs) > 2 or norm.domain == INTERNAL):
            continue
        if node.operator == "Mul" and (len(norm.inputs) > 2 or graph.number(norm.inputs[1]) != 1.0):
            continue
        if node.operator == "Add":
            return [replace(norm, name=node.name, inputs=(*norm.inputs, fitted), outputs=node.outputs)]
        return [_with_scale(graph, norm, node, fitted)]
    return None


NORMS: list[Pattern] = [quotient, expanded, affine]


def _root(graph: Rewriter, name: str) -> Spread | None:
    """``sqrt(mean(d^2) + eps)``."""
    node = graph.made_by(name, "Sqrt", "Pow")
    if node is None or (node.operator == "Pow" and graph.number(node.inputs[1]) != 0.5):
        return None
    return _radicand(graph, node.inputs[0])


def _inverse(graph: Rewriter, name: str) -> Spread | None:
    """``1 / sqrt(mean(d^2) + eps)``, perhaps times a constant."""
    node = graph.made_by(name, "Reciprocal", "Div", "Pow", "Mul")
    if node is None:
        return None
    if node.operator == "Reciprocal":
        return _root(graph, node.inputs[0])
    if node.operator == "Div":
        return _root(graph, node.inputs[1]) if graph.number(node.inputs[0]) == 1.0 else None
    if node.operator == "Pow":
        return _radicand(graph, node.inputs[0]) if graph.number(node.inputs[1]) == -0.5 else None
    for factor, scale in (node.inputs, node.inputs[::-1]):
        inner = _inverse(graph, factor) if scale in graph.graph.constants else None
        if inner is not None and not inner.scale:
            return replace(inner, scale=scale)
    return None


def _radicand(graph: Rewriter, name: str) -> Spread | None:
    """``mean(d^2) + eps``."""
    node, epsilon = graph.made_by(name, "Add"), 0.0
    found = graph.with_number(node) if node is not None else None
    if found is not None:
        name, epsilon = found
    mean = graph.reduced(name, "ReduceMean")
    if mean is None:
        return _two_moments(graph, name, epsilon)
    deviation = _squared(graph, mean[0])
    if deviation is None or not mean[1]:
        return None
    node = graph.made_by(deviation, "Sub")
    centred = node is not None and graph.reduced(node.inputs[1], "ReduceMean") == (node.inputs[0], mean[1])
    return Spread(deviation, node.inputs[0] if node is not None and centred else None, mean[1], epsilon)


def _two_moments(graph: Rewriter, name: str, epsilon: float) -> Spread | None:
    """``mean(x^2) - mean(x)^2 + eps``."""
    node = graph.made_by(name, "Sub")
    second = graph.reduced(node.inputs[0], "ReduceMean") if node is not None else None
    x = _squared(graph, second[0]) if second is not None else None
    mean = _squared(graph, node.inputs[1]) if node is not None else None
    if second is None or x is None or mean is None or graph.reduced(mean, "ReduceMean") != (x, second[1]):
        return None
    return Spread(None, x, second[1], epsilon)


def _squared(graph: Rewriter, name: str) -> str | None:
    """d where `name` is its square."""
    node = graph.made_by(name, "Pow", "Mul")
    if node is None:
        return None
    if node.operator == "Pow":
        return node.inputs[0] if graph.number(node.inputs[1]) == 2.0 else None
    return node.inputs[0] if node.inputs[0] == node.inputs[1] else None


def _deviation_of(graph: Rewriter, name: str, spread: Spread) -> str | None:
    """`name` where it is ``x - mean x`` of the x of `spread`."""
    node = graph.made_by(name, "Sub")
    if node is None or node.inputs[0] != spread.source:
        return None
    return name if graph.reduced(node.inputs[1], "ReduceMean") == (spread.source, spread.axes) else None


def _joined(graph: Rewriter, node: Node, spread: Spread, x: str, centred: bool, bias: str = "") -> list[Node] | None:
    """The normalisation of `x`, transposed where its axes are not the last ones."""
    rank, dtype = len(graph.shape(x)), graph.graph.dtypes[x]
    order = [a for a in range(rank) if a not in spread.axes] + list(spread.axes)
    shape = tuple(graph.shape(x)[a] for a in order)
    first = rank - len(spread.axes)
    over = shape[first:]
    scale = _over(graph, spread.scale, x, over, order) if spread.scale else ""
    offset = _over(graph, bias, x, over, order) if bias else ""
    if scale is None or offset is None or graph.shape(node.outputs[0]) != graph.shape(x) or not node.outputs[0]:
        return None
    scale = scale or graph.constant(np.ones(over, dtype), f"{node.outputs[0]}/scale")
    if order == list(range(rank)):
        return [_norm(graph, node, [x, scale, *([offset] if offset else [])], first, spread.epsilon, centred)]
    moved, result = (graph.value(shape, dtype, f"{node.outputs[0]}/{part}") for part in ("moved", "normalised"))
    norm = _norm(graph, node, [moved, scale, *([offset] if offset else [])], first, spread.epsilon, centred, result)
    return [
        graph.node(node, "Transpose", [x], moved, {"perm": order}),
        norm,
        graph.node(node, "Transpose", [result], attributes={"perm": [int(k) for k in np.argsort(order)]}),
    ]


def _norm(
    graph: Rewriter,
    like: Node,
    inputs: Sequence[str],
    axis: int,
    epsilon: float,
    centred: bool,
    output: str | None = None,
) -> Node:
    attributes = {"axis": axis - len(graph.shape(inputs[0])), "epsilon": epsilon}
    if centred:
        return graph.node(like, "LayerNormalization", inputs, output, attributes)
    node = graph.node(like, "RMSNormalization", inputs, output, attributes, INTERNAL)
    return _with_scale(graph, node, node, inputs[1])


def _with_scale(graph: Rewriter, norm: Node, like: Node, scale: str) -> Node:
    """`norm` in the place of `like`, times `scale`; that of root mean squares gets the body that computes it."""
    inputs = (norm.inputs[0], scale)
    node = replace(norm, name=like.name, inputs=inputs, outputs=like.outputs)
    if norm.domain != INTERNAL:
        return node
    x, y, dtype = norm.inputs[0], like.outputs[0], graph.graph.dtypes[norm.inputs[0]]
    shape, axis = graph.shape(x), norm.attributes["axis"]
    kept = (*shape[:axis], *[1] * -axis)
    two = graph.constant(np.array(2.0, dtype), f"{y}/two")
    axes = graph.constant(np.arange(axis, 0, dtype=np.int64), f"{y}/axes")
    epsilon = graph.constant(np.array(norm.attributes["epsilon"], dtype), f"{y}/epsilon")
    square, unit = (graph.value(shape, dtype, f"{y}/{part}") for part in ("square", "unit"))
    mean, shifted, root = (graph.value(kept, dtype, f"{y}/{part}") for part in ("mean_square", "shifted", "root"))
    body = [
        graph.node(like, "Pow", [x, two], square),
        graph.node(like, "ReduceMean", [square, axes], mean, {"keepdims": 1}),
        graph.node(like, "Add", [mean, epsilon], shifted),
        graph.node(like, "Sqrt", [shifted], root),
        graph.node(like, "Div", [x, root], unit),
        graph.node(like, "Mul", [unit, scale], y),
    ]
    attributes = {**norm.attributes, "body": subgraph(graph.graph, body, inputs, y)}
    return replace(node, attributes=attributes)


def _over(
    graph: Rewriter, constant: str, x: str, over: tuple[int, ...], order: Sequence[int] | None = None
) -> str | None:
    """`constant` as an array over the normalised axes (shape `over`); None where it varies along another one."""
    array, rank = graph.graph.constants[constant], len(graph.shape(x))
    if array.ndim > rank:
        return None
    array = array.reshape((1,) * (rank - array.ndim) + array.shape)
    array = np.transpose(array, order) if order is not None else array
    if any(n != 1 for n in array.shape[: rank - len(over)]):
        return None
    array = array.reshape(array.shape[rank - len(over) :])
    if array.shape == over and graph.graph.constants[constant].shape == over:
        return constant
    return graph.constant(np.ascontiguousarray(np.broadcast_to(array, over)), f"{constant}/over")
