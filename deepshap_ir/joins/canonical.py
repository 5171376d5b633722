"""Joins of patterns, so that one function has one answer however it is spelled."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from deepshap_ir.graph import Graph, Node
from deepshap_ir.importing.trace import tidy
from deepshap_ir.joins.exponentials import EXPONENTIALS
from deepshap_ir.joins.masks import finite_masks, low_masks
from deepshap_ir.joins.norms import NORMS
from deepshap_ir.joins.own_size import OWN_SIZE
from deepshap_ir.joins.product_trees import join_products, square
from deepshap_ir.joins.regions import join_regions
from deepshap_ir.joins.rewriting import Pattern, Rewriter
from deepshap_ir.joins.texts import TEXTS
from deepshap_ir.joins.windows import WINDOWS

Pass = Callable[[Graph, Collection[str]], Graph]

COMMUTATIVE = frozenset(["Add", "And", "Equal", "Mul", "Or", "Xor"])

HIDDEN = "deepshap_ir.hidden"
"""The domain of nodes that no pattern may touch, while the passes run."""

SMALL = 4096
"""Constants of at most so many bytes are compared."""


def patterns(*found: Pattern) -> Pass:
    """The pass that replaces every node that one of the patterns fits."""

    def apply(graph: Graph, keep: Collection[str]) -> Graph:
        return tidy(Rewriter(graph, keep).run(found))

    return apply


def join_equal(graph: Graph, keep: Collection[str]) -> Graph:
    """Compute equal operators on equal values once, so that ``u u`` shows that its factors are equal.

    Values that must survive are left apart: one of two equal ones may be held, and the other not.
    """
    fixed = {*keep, *(name for node in graph.nodes for name in node.captures)}
    same: dict[str, str] = {}
    first: dict[Any, str] = {}
    for name, array in graph.constants.items():
        if array.nbytes <= SMALL and array.dtype != object:
            same[name] = first.setdefault((array.dtype.str, array.shape, array.tobytes()), name)
    made: dict[Any, Node] = {}
    nodes = []
    for node in graph.nodes:
        node = replace(node, inputs=tuple(same.get(name, name) for name in node.inputs))
        key = None if any(name in fixed for name in node.outputs) else _key(node)
        other = made.setdefault(key, node) if key is not None else node
        if other is node:
            nodes.append(node)
        same.update(zip(node.outputs, other.outputs, strict=True))
    return tidy(replace(graph, nodes=tuple(nodes)))


def _key(node: Node) -> Any:
    """What equal nodes have in common; None for one that has a subgraph."""
    inputs = sorted(node.inputs) if node.operator in COMMUTATIVE else node.inputs
    attributes: list[Any] = []
    for name, value in sorted(node.attributes.items()):
        if isinstance(value, np.ndarray):
            attributes.append((name, value.dtype.str, value.shape, value.tobytes()))
        elif isinstance(value, int | float | str | bytes | list | tuple):
            attributes.append((name, repr(value)))
        else:
            return None
    return node.operator, node.version, tuple(inputs), tuple(map(bool, node.outputs)), tuple(attributes)


PASSES: list[Pass] = [
    join_equal,
    patterns(*WINDOWS, *EXPONENTIALS),
    finite_masks,
    low_masks,
    patterns(*NORMS),
    patterns(*OWN_SIZE),
    join_products,
    patterns(square),
    join_regions,
]
"""What `canonicalise` does, in this order: products group their factors before functions of one number are joined."""

FIRST: list[Pass] = [patterns(*TEXTS)]
"""What is joined before operators are expanded."""


def canonicalise(
    graph: Graph, protected: Collection[str], own: Collection[str] = (), passes: Sequence[Pass] = PASSES
) -> Graph:
    """`graph` with patterns joined whose answer would depend on how they are spelled.

    Joined nodes without an ONNX operator of their own are of the domain `deepshap_ir.engine.value.INTERNAL` and have
    their program as the attribute ``body``. The function does not change.

    Parameters
    ----------
    protected : values that survive and that nothing is joined across: held, attributed to.
    own : names of nodes that stay as they are, because they have a rule of the user's.
    passes : what is joined.
    """
    keep = frozenset([*protected, *graph.inputs, *graph.outputs])
    hidden = {node.name: node.domain for node in graph.nodes if node.name in own}
    graph = _in_domains(graph, dict.fromkeys(hidden, HIDDEN))
    for apply in passes:
        graph = apply(graph, keep)
    return _in_domains(graph, hidden)


def _in_domains(graph: Graph, domains: Mapping[str, str]) -> Graph:
    """`graph` with the nodes named in `domains` moved to another domain, where no pattern looks for them."""
    nodes = (replace(node, domain=domains.get(node.name, node.domain)) for node in graph.nodes)
    return replace(graph, nodes=tuple(nodes))
