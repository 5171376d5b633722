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


LINEAR = frozenset(["Gemm", "MatMul", "Mul", "ReduceMean", "ReduceSum"])
"""Linear in each operand, so that ``(L x)/s`` is ``L (x/s)``; Gemm without a third one."""

MOST_SOURCES = 16


def own_size(graph: Rewriter, node: Node) -> list[Node] | None:
    """``c / s`` and ``c (1/s)``: s reduces x and depends on nothing else, and c is linear in x, or ``x - f(x)``."""
    if node.operator not in ("Div", "Mul") or graph.graph.dtypes[node.outputs[0]].kind != "f":
        return None
    for signal, size in (node.inputs, node.inputs[::-1])[: 2 if node.operator == "Mul" else 1]:
        divisor = size if node.operator == "Div" else _inverted(graph, size)
        if divisor is None or not _is_size_of(graph, divisor, signal, graph.shape(node.outputs[0])):
            continue
        expand = graph.made_by(divisor, "Expand")
        divisor = expand.inputs[0] if expand is not None else divisor
        body = subgraph(graph.graph, [graph.node(node, "Div", [signal, divisor])], [signal, divisor], node.outputs[0])
        return [graph.node(node, "OwnSize", [signal, divisor], attributes={"body": body}, domain=INTERNAL)]
    return None


def sizes_of_factors(graph: Rewriter, node: Node) -> list[Node] | None:
    """``<a, b> / (|a| |b|)``, divided by one after the other."""
    product = graph.made_by(node.inputs[1], "Mul") if node.operator == "Div" else None
    if product is None or graph.graph.dtypes[node.outputs[0]].kind != "f":
        return None
    signal, shape = node.inputs[0], graph.shape(node.outputs[0])
    if not all(_is_size_of(graph, size, signal, shape) for size in product.inputs):
        return None
    part = graph.value(shape, graph.graph.dtypes[signal], f"{node.outputs[0]}/part")
    return [
        graph.node(node, "Div", [signal, product.inputs[0]], part),
        graph.node(node, "Div", [part, product.inputs[1]]),
    ]


OWN_SIZE: list[Pattern] = [own_size, sizes_of_factors]


def _is_size_of(graph: Rewriter, size: str, signal: str, shape: tuple[int, ...]) -> bool:
    """Whether `size` is that of a value in which `signal` is linear, or which it shifts; their quotient has `shape`."""
    if signal in graph.graph.constants or size in graph.graph.constants or shape != graph.shape(signal):
        return False
    return any(_reduces(graph, size, source) for source in _sources(graph, signal))


def _inverted(graph: Rewriter, name: str) -> str | None:
    """s where `name` is ``1/s``."""
    node = graph.made_by(name, "Reciprocal", "Div")
    if node is None or (node.operator == "Div" and graph.number(node.inputs[0]) != 1.0):
        return None
    return node.inputs[-1]


def _sources(graph: Rewriter, signal: str) -> list[str]:
    """`signal`, and the values x in which it is linear, or of which it is ``x - f(x)`` or ``f(x) - x``."""
    found = [signal]
    for name in found:
        node = graph.made_by(name, *LINEAR, "Sub", f"{INTERNAL}::OwnSize")
        if node is None or len(found) > MOST_SOURCES:
            continue
        operands = node.inputs[:1] if node.op_type == "OwnSize" else node.inputs
        if node.op_type == "Gemm" and len(node.inputs) > 2:
            continue
        if node.op_type == "Sub":
            pairs = (node.inputs, node.inputs[::-1])
            operands = tuple(x for x, other in pairs if _reduces(graph, other, x))
        found += [x for x in operands if x not in graph.graph.constants and x not in found]
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
