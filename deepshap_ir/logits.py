"""The value before the last Softmax, LogSoftmax or Sigmoid of a classifier.

Probabilities saturate: the attributions of one that is nearly 1 are small whatever it rests on, and those of a softmax
mix the evidence for all classes. The value before, a logit or score, has neither fault.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from deepshap_ir.engine.value import INTERNAL
from deepshap_ir.errors import InputError
from deepshap_ir.graph import Graph, Node
from deepshap_ir.importing.trace import tidy
from deepshap_ir.joins.known import recognise
from deepshap_ir.joins.rewriting import Rewriter, subgraph

SQUASHING = ("Softmax", "LogSoftmax", "Sigmoid")

MOVEMENT = frozenset(
    [
        *("Cast", "Expand", "Flatten", "Gather", "GatherElements", "GatherND"),
        *("Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"),
    ]
)
"""Operators behind the squashing one that move or choose numbers, and do so with the logits too."""

SPELLING = frozenset(["Add", "Div", "Exp", "Mul", "Neg", "Pow", "Reciprocal", "Sub", "Tanh"])
"""Operators with which a sigmoid is spelled out."""

CHAIN = 6
"""At most so many of them."""


def before_squashing(graph: Graph) -> Graph:
    """The program of the logits, from that of the probabilities; their shape is the same.

    Operators that move or choose numbers after the Softmax or Sigmoid do so with the logits. ``1 - sigmoid(z)``, the
    probability of the other of two classes, has the logit ``-z``. A logarithm of probabilities and their division by
    their sum are left out.

    Raises
    ------
    InputError : the output does not end so; the message says in what it does.
    """
    search = _Search(Rewriter(graph, ()), graph.producer())
    output = graph.outputs[0]
    found = search.logits(output)
    if found is None:
        raise InputError(
            f"logits=True: the output {output!r} does not end in {', '.join(SQUASHING)}, but in {search.stopped}. "
            f"Leave logits out, or name the value to explain: output=."
        )
    made = replace(search.graph.graph, outputs=(found.name,), nodes=(*graph.nodes, *search.made))
    return tidy(made)


@dataclass(frozen=True)
class _Logits:
    """The name of a value, and whether each of its numbers is squashed on its own."""

    name: str
    separate: bool


class _Search:
    """Looks upstream from a value for what was squashed.

    Attributes
    ----------
    made : nodes that do with the logits what the model does with the probabilities.
    stopped : in words, at which node the search ended without success.
    """

    def __init__(self, graph: Rewriter, producer: dict[str, Node]) -> None:
        self.graph = graph
        self.producer = producer
        self.made: list[Node] = []
        self.stopped = ""

    def logits(self, name: str) -> _Logits | None:
        """The logits of the probabilities `name`, None where they are none."""
        node = self.producer.get(name)
        if node is None:
            self.stopped = f"the value {name!r}, which no operator computes"
            return None
        if node.op_type in SQUASHING and node.domain in ("", INTERNAL):
            return _Logits(node.inputs[0], node.op_type == "Sigmoid")
        x = self._sigmoid_of(node)
        if x is not None:
            return _Logits(x, True)
        if node.operator in MOVEMENT and self._is_float(node.inputs[0]):
            found = self.logits(node.inputs[0])
            return found and self._repeated(node, [found])
        if node.operator == "Concat":
            parts = [self.logits(part) for part in node.inputs]
            known = [part for part in parts if part is not None]
            return self._repeated(node, known) if len(known) == len(parts) else None
        if node.operator == "Log":
            return self.logits(node.inputs[0])
        if node.operator == "Sub" and self.graph.number(node.inputs[0]) == 1.0:
            found = self.logits(node.inputs[1])
            if found is not None and found.separate:
                return self._add(replace(node, op_type="Neg"), [found.name], True)
        elif node.op_type in ("Div", "OwnSize") and self._is_sum_of(node.inputs[1], node.inputs[0]):
            return self.logits(node.inputs[0])
        self.stopped = self.stopped or str(node)
        return None

    def _is_float(self, name: str) -> bool:
        return self.graph.graph.dtypes[name].kind == "f"

    def _is_sum_of(self, name: str, x: str) -> bool:
        """Whether `name` is the sum of `x` along an axis, which makes probabilities of positive numbers."""
        node = self.producer.get(name)
        if node is None or node.operator not in ("ReduceSum", "ReduceL1"):
            return False
        size = self.producer.get(node.inputs[0])
        return x in (node.inputs[0], size.inputs[0] if size is not None and size.operator == "Abs" else None)

    def _sigmoid_of(self, node: Node) -> str | None:
        """The value whose sigmoid is spelled out by `node` and others before it, ``(1 + tanh(z / 2)) / 2`` say."""
        graph, chain = self.graph.graph, [node]
        while len(chain) <= CHAIN and chain[-1].operator in SPELLING:
            varying = [name for name in dict.fromkeys(chain[-1].inputs) if name not in graph.constants]
            if len(varying) != 1 or graph.shapes[varying[0]] != graph.shapes[node.outputs[0]]:
                return None
            found = recognise(subgraph(graph, chain[::-1], varying, node.outputs[0]))
            if found is not None and found[0] == "Sigmoid":
                return varying[0]
            before = self.producer.get(varying[0])
            if before is None:
                return None
            chain.append(before)
        return None

    def _repeated(self, node: Node, parts: list[_Logits]) -> _Logits:
        """`node` on logits."""
        return self._add(node, [part.name for part in parts], all(part.separate for part in parts))

    def _add(self, node: Node, first: list[str], separate: bool) -> _Logits:
        """A node like `node`, whose first inputs are `first`, and the rest as they are."""
        graph, output = self.graph, node.outputs[0]
        rest = () if node.op_type == "Neg" else node.inputs[len(first) :]
        dtype = graph.graph.dtypes[output]
        name = graph.value(graph.shape(output), dtype if dtype.kind == "f" else np.float32, f"{output}/logits")
        made = graph.node(node, node.op_type, [*first, *rest], name, node.attributes)
        self.made.append(made)
        self.producer[name] = made
        return _Logits(name, separate)
