"""Masks made of data: minus infinity on the way to a softmax is a large finite number, which has a delta.

Large finite numbers are masks too, in rows of which a softmax is uniform where everything is masked.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import numpy as np

from deepshap_ir.engine.emitter import Emitter, as_graph
from deepshap_ir.engine.value import INTERNAL, SAMPLE, Value
from deepshap_ir.graph import Graph, Node
from deepshap_ir.joins.rewriting import Rewriter

LOW = -1e9
"""What masked scores get: the exponential function makes 0 of it, and float32 keeps the other scores beside it."""

HIGHEST = LOW / 2
"""Scores below are masked."""

LOWEST = -(2.0**70)
"""What masks by lower numbers get: its products do not overflow, and scores that are added to it make no difference."""

LARGE = 5e3
"""Numbers beyond are masks when they are added to scores: -1e4 is a usual one."""

MASKED: dict[str, tuple[int, ...] | None] = {
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

SOFTMAXES = ("Softmax", "LogSoftmax")


def finite_masks(graph: Graph, keep: Collection[str]) -> Graph:
    """Where a choice between -inf and scores, or 0, has no other way than to a softmax, put `LOW` for -inf.

    A pad that sample or reference alone has, as its token says, is then a player like any other. The function stays
    what it is: a row of a softmax in which everything is masked is NaN, for which the model may look (IsNaN of the
    softmax, or scores compared with -inf), and a masked LogSoftmax is -inf.
    """
    masks = _masks(graph, keep, _infinite, SOFTMAXES)
    if not masks:
        return graph
    changed = _Masked.of(graph, masks, keep)
    return Rewriter(graph, keep).run([changed.mask, changed.softmax, changed.is_nan, changed.compared])


def low_masks(graph: Graph, keep: Collection[str]) -> Graph:
    """Tell a softmax of scores that are masked by large finite numbers that whole rows of it may be.

    All scores of such a row fall by the same, which makes no difference: what jumps shares the change of the softmax,
    and float32 does not have to hold ``-1e9`` beside scores. Where a choice between scores and less than `LOWEST` has
    no other way than to a softmax, that becomes `LOWEST`: the lowest float has a delta that overflows. Not beside other
    numbers as low: in a row masked as a whole the softmax tells them apart.
    """
    scores: set[str] = set()
    for node in graph.nodes:
        masks = node.operator == "Mul" or (node.operator == "Where" and node.inputs[0] not in graph.constants)
        masks = masks and any(_large(graph, name) for name in node.inputs)
        if masks or (node.operator in (*MASKED, "Sub") and scores.intersection(node.inputs)):
            scores.update(node.outputs)
    if not scores:
        return graph
    limited_masks = _masks(graph, keep, _low, ("Softmax",))
    limited_masks -= _mixed(graph, limited_masks)

    def mask(graph: Rewriter, node: Node) -> list[Node] | None:
        lowest = [name for name in node.inputs[1:] if -np.inf < _lowest(graph.graph, name) < LOWEST]
        if node.outputs[0] not in limited_masks or not lowest:
            return None
        arrays = {name: graph.graph.constants[name] for name in lowest}
        limited = {
            name: graph.constant(np.maximum(a, a.dtype.type(LOWEST)), f"{node.outputs[0]}/limited_{i}")
            for i, (name, a) in enumerate(arrays.items())
        }
        return [replace(node, inputs=tuple(limited.get(name, name) for name in node.inputs))]

    def softmax(graph: Rewriter, node: Node) -> list[Node] | None:
        if node.operator != "Softmax" or node.inputs[0] not in scores:
            return None
        axis = node.attributes.get("axis", -1)
        body = _program(graph, node.inputs[0], lambda x: x.op.Softmax(x, axis=axis))
        attributes = {**node.attributes, "highest": -LARGE, "body": body}
        return [replace(node, attributes=attributes, domain=INTERNAL, version=1)]

    return Rewriter(graph, keep).run([mask, softmax])


def _masks(
    graph: Graph, keep: Collection[str], masking: Callable[[Graph, str], bool], softmaxes: Collection[str]
) -> set[str]:
    """The outputs of Where nodes with a constant that is `masking` which go to softmaxes alone."""
    elsewhere = set(keep)
    masks: set[str] = set()
    for node in reversed(graph.nodes):
        end = node.operator in softmaxes or (masking is _infinite and _compares(graph, node))
        hidden = not end and any(name in elsewhere for name in node.outputs)
        allowed = None if end else MASKED.get(node.operator, ())
        for position, name in enumerate(node.inputs):
            if hidden or (allowed is not None and position not in allowed):
                elsewhere.add(name)
        elsewhere.update(node.captures)
        if node.operator == "Where" and not hidden and node.inputs[0] not in graph.constants:
            masks.update(node.outputs if any(masking(graph, name) for name in node.inputs[1:]) else ())
    return masks


def _mixed(graph: Graph, masks: Collection[str]) -> set[str]:
    """Those of `masks` that meet others, or other constants as large, on the way to a softmax."""
    mixed: set[str] = set()
    met: dict[str, set[tuple[str, float]]] = {}  # value -> the masks in it, "" for what is none, and their numbers
    for node in graph.nodes if masks else ():
        found = {one for name in node.reads for one in met.get(name, ())}
        if node.operator in SOFTMAXES:
            if len({(name in masks, number) for name, number in found}) > 1:
                mixed.update(name for name, _ in found)
            continue
        mask = node.outputs[0] if node.outputs[0] in masks else ""
        found.update((mask, number) for name in node.inputs for number in _far(graph, name))
        met.update((name, found) for name in node.outputs if found)
    return mixed


def _far(graph: Graph, name: str) -> list[float]:
    """The finite numbers of a constant that `LOWEST` does not leave far above it."""
    array = graph.constants.get(name)
    if array is None or array.dtype.kind != "f":
        return []
    found: list[float] = np.unique(array[np.isfinite(array) & (np.abs(array) > -LOWEST / 2)]).tolist()
    return found


def _compares(graph: Graph, node: Node) -> bool:
    """Whether `node` asks what is -inf."""
    return node.operator == "Equal" and any(
        _infinite(graph, name) and graph.constants[name].size == 1 for name in node.inputs
    )


def _infinite(graph: Graph, name: str) -> bool:
    array = graph.constants.get(name)
    return array is not None and array.dtype.kind == "f" and bool(np.isneginf(array).any())


def _large(graph: Graph, name: str) -> bool:
    array = graph.constants.get(name)
    return array is not None and array.dtype.kind == "f" and bool((np.abs(array) > LARGE).any())


def _low(graph: Graph, name: str) -> bool:
    return -np.inf < _lowest(graph, name) < HIGHEST


def _lowest(graph: Graph, name: str) -> float:
    array = graph.constants.get(name)
    return float(array.min()) if array is not None and array.dtype.kind == "f" and array.size else 0.0


@dataclass(frozen=True)
class _Masked:
    """The patterns, and what they look for.

    Attributes
    ----------
    masks : values in which `LOW` is put for -inf.
    scores : values that hold `LOW` then.
    softmaxes : what softmaxes make of these -> the scores.
    exponents : outputs of LogSoftmax of which nothing but the exponential function is read.
    """

    masks: Collection[str]
    scores: Collection[str]
    softmaxes: dict[str, str]
    exponents: Collection[str]

    @classmethod
    def of(cls, graph: Graph, masks: Collection[str], keep: Collection[str]) -> _Masked:
        scores, softmaxes, readers = set(masks), dict[str, str](), dict[str, list[Node]]()
        for node in graph.nodes:
            for name in node.reads:
                readers.setdefault(name, []).append(node)
            masked = [name for name in node.inputs if name in scores]
            if masked and node.operator in MASKED:
                scores.update(node.outputs)
            elif masked and node.operator in SOFTMAXES:
                softmaxes[node.outputs[0]] = masked[0]
        exponents = {
            p for p in set(softmaxes) - set(keep) if all(node.operator == "Exp" for node in readers.get(p, ()))
        }
        return cls(masks, scores, softmaxes, exponents)

    def mask(self, graph: Rewriter, node: Node) -> list[Node] | None:
        """The choice with `LOW` for -inf."""
        if node.outputs[0] not in self.masks or not any(_infinite(graph.graph, name) for name in node.inputs[1:]):
            return None
        inputs = list(node.inputs)
        for i in (1, 2):
            if _infinite(graph.graph, inputs[i]):
                array = graph.graph.constants[inputs[i]]
                finite = np.where(np.isneginf(array), array.dtype.type(LOW), array)
                inputs[i] = graph.constant(finite, f"{node.outputs[0]}/finite_{i}")
        return [replace(node, inputs=tuple(inputs))]

    def softmax(self, graph: Rewriter, node: Node) -> list[Node] | None:
        """What the file's softmax gives: NaN in a row in which all is masked, and -inf for what LogSoftmax masks."""
        if node.operator not in SOFTMAXES or node.outputs[0] not in self.softmaxes:
            return None
        axis = node.attributes.get("axis", -1)

        def body(x: Value) -> Value:
            op = x.op
            y = getattr(op, node.op_type)(x, axis=axis)
            if node.op_type == "LogSoftmax" and node.outputs[0] not in self.exponents:
                y = op.Where(x < HIGHEST, op.constant(-np.inf, x.dtype), y)
            return op.Where(op.ReduceMax(x, [axis], keepdims=1) < HIGHEST, op.constant(np.nan, x.dtype), y)

        attributes = {**node.attributes, "body": _program(graph, node.inputs[0], body)}
        return [replace(node, attributes=attributes, domain=INTERNAL, version=1)]

    def is_nan(self, graph: Rewriter, node: Node) -> list[Node] | None:
        """Where a softmax is NaN: in the rows in which all is masked."""
        if node.operator != "IsNaN" or node.inputs[0] not in self.softmaxes:
            return None
        scores = self.softmaxes[node.inputs[0]]
        axis = graph.producer[node.inputs[0]].attributes.get("axis", -1)

        def body(x: Value) -> Value:
            return x.op.Expand(x.op.ReduceMax(x, [axis], keepdims=1) < HIGHEST, list(x.shape))

        attributes = {"axis": axis, "highest": HIGHEST, "body": _program(graph, scores, body)}
        return [Node(node.name, "AllMasked", (scores,), node.outputs, attributes, INTERNAL, 1)]

    def compared(self, graph: Rewriter, node: Node) -> list[Node] | None:
        """Whether scores are -inf."""
        scores = [name for name in node.inputs if name in self.scores]
        if not scores or not _compares(graph.graph, node):
            return None
        shape = graph.shape(next(name for name in node.inputs if _infinite(graph.graph, name)))
        array = np.full(shape, HIGHEST, graph.graph.dtypes[scores[0]])  # its rank may be that of the output
        highest = graph.constant(array, f"{node.outputs[0]}/highest")
        return [replace(node, op_type="Less", inputs=(scores[0], highest))]


def _program(graph: Rewriter, scores: str, body: Callable[[Value], Value]) -> Graph:
    """What `body` writes as a graph, with the scores as its input."""
    op = Emitter(graph.graph.opsets, graph.graph.dtypes[scores])
    x = op.input(scores, graph.shape(scores), graph.graph.dtypes[scores], [SAMPLE])
    return as_graph(op, [x], [body(x)])
