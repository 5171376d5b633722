"""Quotients of a value and its own size: ``x / max(|x|, eps)``, ``p / sum p``, ``W x / |x|``, ``d / (std d + eps)``.

As products of two players, x and ``1/s``, their multipliers grow with ``1/s0`` and cancel; see `rules.normalization`.
"""

from __future__ import annotations

from deepshap_ir.engine.inference import BROADCASTING, UNARY
from deepshap_ir.engine.value import INTERNAL
from deepshap_ir.graph import Node
from deepshap_ir.joins.rewriting import Pattern, Rewriter, subgraph

REDUCTIONS = frozenset(f"Reduce{kind}" for kind in ("L1", "L2", "Max", "Mean", "Min", "Sum", "SumSquare"))

WITHOUT_CHOICE = UNARY | BROADCASTING | REDUCTIONS | {"Elementwise", "Expand", "Reshape", "Squeeze", "Unsqueeze"}
"""What may stand on the way to a size: nothing that reads some of the elements only, as these are players apart."""

MOST_VALUES = 64
"""A size that takes more to compute is not looked at."""


def own_size(graph: Rewriter, node: Node) -> list[Node] | None:
    """``c / s`` and ``c (1/s)``: s reduces a value x and depends on nothing else, c is x, ``W x`` or ``x - f(x)``."""
    if node.operator not in ("Div", "Mul") or graph.graph.dtypes[node.outputs[0]].kind != "f":
        return None
    for signal, size in (node.inputs, node.inputs[::-1])[: 2 if node.operator == "Mul" else 1]:
        divisor = size if node.operator == "Div" else _inverted(graph, size)
        if divisor is None or signal in graph.graph.constants or graph.shape(node.outputs[0]) != graph.shape(signal):
            continue
        if not any(_reduces(graph, divisor, source) for source in _sources(graph, signal)):
            continue
        expand = graph.made_by(divisor, "Expand")
        divisor = expand.inputs[0] if expand is not None else divisor
        body = subgraph(graph.graph, [graph.node(node, "Div", [signal, divisor])], [signal, divisor], node.outputs[0])
        return [graph.node(node, "OwnSize", [signal, divisor], attributes={"body": body}, domain=INTERNAL)]
    return None


OWN_SIZE: list[Pattern] = [own_size]


def _inverted(graph: Rewriter, name: str) -> str | None:
    """s where `name` is ``1/s``."""
    node = graph.made_by(name, "Reciprocal", "Div")
    if node is None or (node.operator == "Div" and graph.number(node.inputs[0]) != 1.0):
        return None
    return node.inputs[-1]


def _sources(graph: Rewriter, signal: str) -> list[str]:
    """`signal`, and the values x of which it is ``W x``, as ``(W x)/s`` is ``W (x/s)``, or ``x - f(x)``."""
    found = [signal]
    while (node := graph.made_by(found[-1], "MatMul", "Mul", "ReduceSum", "ReduceMean", "Sub")) is not None:
        varying = [name for name in node.inputs if name and name not in graph.graph.constants]
        shift = node.operator == "Sub" and varying[:1] == [node.inputs[0]] and _reduces(graph, *reversed(node.inputs))
        if not shift and (node.operator == "Sub" or len(varying) != 1):
            break
        found.append(varying[0])
    return found


def _reduces(graph: Rewriter, name: str, source: str) -> bool:
    """Whether the value `name` is a function of `source` alone, whose elements it reduces."""
    waiting, seen, reduced = [name], {name}, False
    while waiting:
        value = waiting.pop()
        if value == source or value in graph.graph.constants:
            continue
        node = graph.producer.get(value)
        if node is None or value in graph.keep or node.op_type not in WITHOUT_CHOICE or len(seen) > MOST_VALUES:
            return False
        reduced |= node.op_type in REDUCTIONS
        fresh = {read for read in node.reads if read} - seen
        seen |= fresh
        waiting += fresh
    return reduced and source in seen
