"""Element-wise functions of one number: find them and make one node of each.

A value's *dominators* are the values that it is an element-wise function of, alone: every path from the inputs to it
goes through each of them. They form a chain; the nearest one is kept per value.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

from deepshap_ir.engine.inference import BROADCASTING, UNARY
from deepshap_ir.engine.value import INTERNAL
from deepshap_ir.graph import Graph, Node
from deepshap_ir.importing.trace import tidy
from deepshap_ir.joins.known import recognise
from deepshap_ir.joins.rewriting import subgraph

ELEMENTWISE = UNARY | BROADCASTING | {"Elementwise"}

FURTHER = 2
"""How many values before its leaf a function is tried to be recognised from: ``e / (1 + e)``, where ``e = exp x``."""

ADDITIVE = frozenset(["Add", "Sub", "Sum", "Mean"])
"""Operators whose rule is the secant of the whole anyway, one by one."""


class Dominators:
    """The dominators of every value of a graph.

    Attributes
    ----------
    nearest : per value the nearest one other than itself, None where there is none and for values of `keep`.
    leaf : the same per node output, without regard to `keep` at that output itself.
    """

    def __init__(self, graph: Graph, keep: Collection[str]) -> None:
        self.nearest: dict[str, str | None] = {}
        self.leaf: dict[str, str | None] = {}
        self._depth: dict[str, int] = {}
        self._graph = graph
        for name in graph.inputs:
            self._enter(name, None)
        for node in graph.nodes:
            common = self._of(node) if len(node.outputs) == 1 else None
            for name in filter(None, node.outputs):
                self.leaf[name] = common
                self._enter(name, None if name in keep else common)

    def common(self, names: Iterable[str]) -> str | None:
        """The nearest value that all of `names` are element-wise functions of, themselves included."""
        first, *others = names
        found: str | None = first
        for other in others:
            found = self._meet(found, other)
        return found

    def varying(self, node: Node) -> list[str]:
        """The different inputs of `node` that are no constants."""
        return [n for n in dict.fromkeys(node.inputs) if n and n not in self._graph.constants]

    def _of(self, node: Node) -> str | None:
        names, shape = self.varying(node), self._graph.shapes[node.outputs[0]]
        if node.domain not in ("", INTERNAL) or node.op_type not in ELEMENTWISE:
            return None
        if not names or any(self._graph.shapes[name] != shape for name in names):
            return None
        return self.common(names)

    def _enter(self, name: str, nearest: str | None) -> None:
        self.nearest[name] = nearest
        self._depth[name] = 0 if nearest is None else self._depth[nearest] + 1

    def _meet(self, a: str | None, b: str | None) -> str | None:
        while a is not None and b is not None and a != b:
            if self._depth[a] >= self._depth[b]:
                a = self.nearest[a]
            else:
                b = self.nearest[b]
        return a if a == b else None


def join_regions(graph: Graph, keep: Collection[str]) -> Graph:
    """Make one node of every function of one number in which paths part and meet in more than a sum.

    ``x sigmoid(x)``, GELU spelled out, ``Where(x > 20, x, log(1 + exp x))``, hard swish. The largest such function is
    taken. A recognised one becomes the operator of that name, in the domain of joined patterns; its body stays.
    """
    search = _Search(graph, keep)
    joined: dict[str, Node] = {}
    needed = set(graph.outputs)
    for node in reversed(graph.nodes):
        if any(name in needed for name in node.outputs):
            made = search.joined(node)
            if made is not None:
                joined[node.name] = made
            needed.update((made or node).reads)
    return tidy(replace(graph, nodes=tuple(joined.get(node.name, node) for node in graph.nodes)))


class _Search:
    """Finds the function of one number that a node ends."""

    def __init__(self, graph: Graph, keep: Collection[str]) -> None:
        self.graph, self.keep = graph, keep
        self.dominators, self.producer = Dominators(graph, keep), graph.producer()
        self.position = {node.name: k for k, node in enumerate(graph.nodes)}

    def joined(self, node: Node) -> Node | None:
        """The node that takes the place of `node`, None where there is nothing to join."""
        if not node.outputs[0] or self.graph.dtypes[node.outputs[0]].kind != "f":
            return None
        leaf, whole = self._leaf(node), True
        if leaf is None:  # a constant factor may be a part of what is recognised
            inner = [self.producer.get(name) for name in self.dominators.varying(node) if name not in self.keep]
            scales = node.operator in ("Mul", "Div") and len(inner) == 1 and self.dominators.leaf[node.outputs[0]]
            leaf, whole = self._leaf(inner[0]) if scales and inner[0] is not None else None, False
        if leaf is None:
            return None
        start: str | None = leaf
        for _ in range(1 + FURTHER):
            found = recognise(self._body(start, node)) if start is not None else None
            if start is not None and found is not None:
                return self._node(node, start, *found)
            start = self.dominators.nearest[start] if start is not None else None
        return self._node(node, leaf, "Elementwise", {}) if whole else None

    def _leaf(self, node: Node) -> str | None:
        """The value that `node` is a function of, where paths from there part and meet in more than a sum."""
        leaf = self.dominators.leaf[node.outputs[0]]
        if leaf is None or len(self.dominators.varying(node)) < 2:
            return None
        inside = _between(self.producer, leaf, node)
        return leaf if any(_paths_meet(n, self.dominators) for n in inside) else None

    def _body(self, leaf: str, node: Node) -> Graph:
        inside = sorted(_between(self.producer, leaf, node), key=lambda n: self.position[n.name])
        return subgraph(self.graph, inside, [leaf], node.outputs[0])

    def _node(self, node: Node, leaf: str, op_type: str, attributes: Mapping[str, Any]) -> Node:
        attributes = {**attributes, "body": self._body(leaf, node)}
        return Node(node.name, op_type, (leaf,), node.outputs, attributes, INTERNAL, 1)


def _paths_meet(node: Node, dominators: Dominators) -> bool:
    return node.op_type not in ADDITIVE and len(dominators.varying(node)) > 1


def _between(producer: Mapping[str, Node], leaf: str, last: Node) -> list[Node]:
    """The nodes between the value `leaf` and the node `last`, which is included."""
    found = {last.name: last}
    waiting = [last]
    while waiting:
        for name in waiting.pop().reads:
            node = producer.get(name)
            if name != leaf and node is not None and node.name not in found:
                found[node.name] = node
                waiting.append(node)
    return list(found.values())
