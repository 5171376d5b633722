"""Softmax and its kin spelled out: joined into the operators that have a rule of their own.

Exp, sum and quotient one by one also sum to delta, with multipliers that explode; see `rules.softmax`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from deepshap_ir.engine.value import INTERNAL
from deepshap_ir.graph import Node
from deepshap_ir.joins.rewriting import Pattern, Rewriter, subgraph


def log_sum_exp(graph: Rewriter, node: Node) -> list[Node] | None:
    """``log(sum(exp x))`` and ``ReduceLogSum(exp x)``."""
    if node.operator == "Log":
        inner = graph.made_by(node.inputs[0], "ReduceSum")
    else:
        inner = node if node.operator == "ReduceLogSum" else None
    exp = graph.made_by(inner.inputs[0], "Exp") if inner is not None else None
    if inner is None or exp is None:
        return None
    attributes = {k: inner.attributes[k] for k in ("keepdims", "noop_with_empty_axes") if k in inner.attributes}
    return [graph.node(node, "ReduceLogSumExp", [exp.inputs[0], *inner.inputs[1:]], attributes=attributes)]


def log_sum_exp_of_shifted(graph: Rewriter, node: Node) -> list[Node] | None:
    """``logsumexp(x - max x) + max x``."""
    if node.operator != "Add":
        return None
    for total, shift in (node.inputs, node.inputs[::-1]):
        inner = graph.made_by(total, "ReduceLogSumExp")
        x = _without_maximum(graph, inner.inputs[0], graph.axes(inner)) if inner is not None else None
        if inner is None or x is None or graph.shape(node.outputs[0]) != graph.shape(total):
            continue
        if _is_maximum(graph, shift, x, graph.axes(inner)):
            return [graph.node(node, "ReduceLogSumExp", [x, *inner.inputs[1:]], attributes=inner.attributes)]
    return None


def softmax(graph: Rewriter, node: Node) -> list[Node] | None:
    """``exp x / sum(exp x)``, also as a product with the reciprocal, and ``exp(log_softmax x)``."""
    if node.operator == "Exp":
        inner = graph.made_by(node.inputs[0], "LogSoftmax")
        return [graph.node(node, "Softmax", inner.inputs, attributes=inner.attributes)] if inner is not None else None
    if node.operator not in ("Div", "Mul"):
        return None
    for top, bottom in (node.inputs, node.inputs[::-1])[: 2 if node.operator == "Mul" else 1]:
        if node.operator == "Mul":
            reciprocal = graph.made_by(bottom, "Reciprocal")
            if reciprocal is None:
                continue
            bottom = reciprocal.inputs[0]
        exp, total = graph.made_by(top, "Exp"), graph.reduced(bottom, "ReduceSum")
        if exp is not None and total is not None and total[0] == top:
            return _along(graph, node, "Softmax", exp.inputs[0], total[1])
    return None


def log_softmax(graph: Rewriter, node: Node) -> list[Node] | None:
    """``x - logsumexp x`` and ``log(softmax x)``."""
    if node.operator == "Log":
        inner = graph.made_by(node.inputs[0], "Softmax")
        return (
            [graph.node(node, "LogSoftmax", inner.inputs, attributes=inner.attributes)] if inner is not None else None
        )
    total = graph.reduced(node.inputs[1], "ReduceLogSumExp") if node.operator == "Sub" else None
    if total is None or total[0] != node.inputs[0]:
        return None
    return _along(graph, node, "LogSoftmax", *total)


def shifted(graph: Rewriter, node: Node) -> list[Node] | None:
    """A softmax of ``x - max x`` is that of x."""
    if node.operator not in ("Softmax", "LogSoftmax"):
        return None
    axis = node.attributes.get("axis", -1) % len(graph.shape(node.inputs[0]))
    x = _without_maximum(graph, node.inputs[0], (axis,))
    return None if x is None else [replace(node, inputs=(x,))]


def softplus(graph: Rewriter, node: Node) -> list[Node] | None:
    """``log(1 + exp x)``: exp alone overflows."""
    inner = graph.made_by(node.inputs[0], "Add") if node.operator == "Log" else None
    found = graph.with_number(inner) if inner is not None else None
    exp = graph.made_by(found[0], "Exp") if found is not None and found[1] == 1.0 else None
    if inner is None or exp is None:
        return None
    body = subgraph(graph.graph, [exp, inner, node], exp.inputs, node.outputs[0])
    return [graph.node(node, "Softplus", exp.inputs, attributes={"body": body}, domain=INTERNAL)]


def sigmoid(graph: Rewriter, node: Node) -> list[Node] | None:
    """``1 / (1 + exp(-x))``: exp alone overflows."""
    if node.operator == "Reciprocal":
        bottom = node.inputs[0]
    elif node.operator == "Div" and graph.number(node.inputs[0]) == 1.0:
        bottom = node.inputs[1]
    else:
        return None
    inner = graph.made_by(bottom, "Add")
    found = graph.with_number(inner) if inner is not None else None
    exp = graph.made_by(found[0], "Exp") if found is not None and found[1] == 1.0 else None
    if exp is None or graph.shape(node.outputs[0]) != graph.shape(exp.inputs[0]):
        return None
    negative = graph.made_by(exp.inputs[0], "Neg")
    if negative is not None:
        return [graph.node(node, "Sigmoid", negative.inputs)]
    x = exp.inputs[0]
    flipped = graph.value(graph.shape(x), graph.graph.dtypes[x], f"{x}/negative")
    return [graph.node(node, "Neg", [x], flipped), graph.node(node, "Sigmoid", [flipped])]


EXPONENTIALS: list[Pattern] = [log_sum_exp, log_sum_exp_of_shifted, softmax, log_softmax, shifted, softplus, sigmoid]


def _without_maximum(graph: Rewriter, name: str, axes: tuple[int, ...] | None) -> str | None:
    """x where `name` is ``x - max x`` along `axes`."""
    node = graph.made_by(name, "Sub")
    if node is None or not _is_maximum(graph, node.inputs[1], node.inputs[0], axes, kept=True):
        return None
    return node.inputs[0]


def _is_maximum(graph: Rewriter, name: str, x: str, axes: tuple[int, ...] | None, kept: bool = False) -> bool:
    """Whether `name` is the maximum of `x` along `axes`; `kept`: with these axes of length 1."""
    found = graph.reduced(name, "ReduceMax")
    if found is None and not kept:
        node = graph.made_by(name, "ReduceMax", "Squeeze", "Reshape")
        while node is not None and node.operator != "ReduceMax":
            node = graph.made_by(node.inputs[0], "ReduceMax", "Squeeze", "Reshape")
        reduced = graph.axes(node) if node is not None else None
        found = (node.inputs[0], reduced) if node is not None and reduced is not None else None
    return found is not None and found == (x, axes)


def _along(graph: Rewriter, node: Node, op_type: str, x: str, axes: tuple[int, ...]) -> list[Node] | None:
    """`op_type` of `x` over `axes`; several are spelled with logsumexp, whose rule gives the same multipliers."""
    shape = graph.shape(x)
    if graph.shape(node.outputs[0]) != shape:
        return None
    axes = tuple(a for a in axes if shape[a] > 1) or axes[:1]
    if len(axes) == 1:
        return [graph.node(node, op_type, [x], attributes={"axis": axes[0]})]
    if op_type == "LogSoftmax" or not axes:
        return None
    dtype, kept = graph.graph.dtypes[x], [1 if a in axes else n for a, n in enumerate(shape)]
    over = graph.constant(np.array(axes, np.int64), f"{node.outputs[0]}/axes")
    total, logarithm = (
        graph.value(s, dtype, f"{node.outputs[0]}/log_{part}") for s, part in ((kept, "sum"), (shape, "p"))
    )
    return [
        graph.node(node, "ReduceLogSumExp", [x, over], total, {"keepdims": 1}),
        graph.node(node, "Sub", [x, total], logarithm),
        graph.node(node, "Exp", [logarithm]),
    ]
