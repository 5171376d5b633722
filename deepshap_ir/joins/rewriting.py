"""What the passes of `deepshap_ir.joins.canonical` share: look upstream from a node, and replace it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from deepshap_ir.engine.value import INTERNAL
from deepshap_ir.graph import Array, Graph, Node
from deepshap_ir.importing.subgraphs import fresh

Pattern = Callable[["Rewriter", Node], "list[Node] | None"]
"""Sees a node whose inputs are rewritten already; gives the nodes that replace it, or None."""


class Rewriter:
    """A graph that is being rewritten from its inputs on.

    A replaced node's inputs stay where they are until nothing reads them: patterns may share values with the rest.

    Attributes
    ----------
    keep : values that must survive: no pattern reaches across them.
    """

    def __init__(self, graph: Graph, keep: Collection[str]) -> None:
        self.graph = replace(
            graph, constants=dict(graph.constants), shapes=dict(graph.shapes), dtypes=dict(graph.dtypes)
        )
        self.keep = frozenset(keep)
        self.producer: dict[str, Node] = {}
        self._taken = {*graph.shapes, *(node.name for node in graph.nodes)}

    def run(self, patterns: Sequence[Pattern]) -> Graph:
        """Replace every node by what the first pattern that fits makes of it, until none fits."""
        nodes: list[Node] = []
        waiting = list(self.graph.nodes)[::-1]
        while waiting:
            node = waiting.pop()
            made = next((made for pattern in patterns if (made := pattern(self, node)) is not None), None)
            if made is not None:
                waiting += made[::-1]
                continue
            nodes.append(node)
            self.producer.update((name, node) for name in node.outputs if name)
        return replace(self.graph, nodes=tuple(nodes))

    def made_by(self, name: str, *operators: str) -> Node | None:
        """The node that makes `name`, where it is one of `operators` and the value need not survive."""
        node = self.producer.get(name)
        return node if node is not None and name not in self.keep and node.operator in operators else None

    def number(self, name: str) -> float | None:
        """The value of a constant all of whose elements are equal, else None."""
        array = self.graph.constants.get(name) if name else None
        if array is None or array.size == 0 or array.dtype.kind not in "fiu":
            return None
        return float(array.flat[0]) if np.all(array == array.flat[0]) else None

    def with_number(self, node: Node) -> tuple[str, float] | None:
        """The operand and the number, where one of the two operands of `node` is a constant number that broadcasts."""
        shape = self.shape(node.outputs[0])
        for operand, constant in (node.inputs, node.inputs[::-1]):
            value = self.number(constant)
            if value is not None and operand not in self.graph.constants and self.shape(operand) == shape:
                return operand, value
        return None

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a value."""
        return self.graph.shapes[name]

    def axes(self, node: Node) -> tuple[int, ...] | None:
        """The axes of a reduction, counted from the front and sorted; None where they are not constant."""
        rank = len(self.shape(node.inputs[0]))
        given = node.inputs[1] if len(node.inputs) > 1 else ""
        if given and given not in self.graph.constants:
            return None
        axes = [int(a) % rank for a in self.graph.constants[given].reshape(-1)] if given else []
        if not axes:
            return () if node.attributes.get("noop_with_empty_axes", 0) else tuple(range(rank))
        return tuple(sorted(axes))

    def reduced(self, name: str, operator: str) -> tuple[str, tuple[int, ...]] | None:
        """Operand and axes of the reduction that makes `name`; the reduced axes are kept, put back, or repeated."""
        expand = self.made_by(name, "Expand")
        name = expand.inputs[0] if expand is not None else name
        node = self.made_by(name, operator, "Unsqueeze", "Reshape")
        while node is not None and node.operator != operator:
            node = self.made_by(node.inputs[0], operator, "Unsqueeze", "Reshape")
        axes = self.axes(node) if node is not None else None
        if node is None or axes is None:
            return None
        kept = tuple(1 if k in axes else n for k, n in enumerate(self.shape(node.inputs[0])))
        return (node.inputs[0], axes) if self.shape(name) == kept else None

    def constant(self, array: Array, name: str) -> str:
        """A new constant, called `name` where that is free."""
        name = fresh(name, self._taken)
        self.graph.constants[name] = array
        self.graph.shapes[name], self.graph.dtypes[name] = array.shape, array.dtype
        return name

    def value(self, shape: Sequence[int], dtype: Any, name: str) -> str:
        """A new value, called `name` where that is free."""
        name = fresh(name, self._taken)
        self.graph.shapes[name], self.graph.dtypes[name] = tuple(shape), np.dtype(dtype)
        return name

    def node(
        self,
        like: Node,
        op_type: str,
        inputs: Sequence[str],
        output: str | None = None,
        attributes: Mapping[str, Any] | None = None,
        domain: str = "",
    ) -> Node:
        """A node that takes the place of `like`, whose name it has where it makes its output."""
        name = like.name if output is None else fresh(f"{like.name}/{op_type}", self._taken)
        version = 1 if domain == INTERNAL else self.graph.opsets[""]
        outputs = like.outputs[:1] if output is None else (output,)
        return Node(name, op_type, tuple(inputs), outputs, dict(attributes or {}), domain, version)


def subgraph(graph: Graph, nodes: Sequence[Node], inputs: Sequence[str], output: str) -> Graph:
    """The program of `nodes`, a part of `graph`, from `inputs` to `output`."""
    names = {name for node in nodes for name in (*node.reads, *node.outputs) if name} | {*inputs, output}
    return Graph(
        tuple(inputs),
        (output,),
        tuple(nodes),
        {name: graph.constants[name] for name in sorted(names) if name in graph.constants and name not in inputs},
        {name: graph.shapes[name] for name in sorted(names)},
        {name: graph.dtypes[name] for name in sorted(names)},
        {},
        graph.opsets,
    )
