"""Which values of a model depend on the fed inputs, and which operators cannot stand on that way.

A value can depend on the fed data in what it holds (*varying*) or in its shape (*elastic*). Shape, Size and the like
make a varying value of an elastic one, and a constant of any other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, helper

from deepshap_ir.importing.subgraphs import bodies, captured

_SHAPE_ONLY: Mapping[str, int] = {
    "CastLike": 1,
    "EyeLike": 0,
    "OptionalHasElement": 0,
    "SequenceLength": 0,
    "Shape": 0,
    "Size": 0,
}
"""Operator -> the input of which it reads nothing but the shape or the type."""

_DYNAMIC = frozenset(
    {
        "ImageDecoder",
        "NonMaxSuppression",
        "NonZero",
        "StringSplit",
        "Unique",
        "com.microsoft::BeamSearch",
        "com.microsoft::GreedySearch",
        "com.microsoft::Sampling",
        "com.microsoft::Unique",
    }
)
"""Operators whose output shape follows from the data of any of their inputs."""

_SHAPE_INPUTS: Mapping[str, tuple[int, ...]] = {
    "AffineGrid": (1,),
    "BlackmanWindow": (0,),
    "CenterCropPad": (1,),
    "Col2Im": (1, 2),
    "Compress": (1,),
    "ConstantOfShape": (0,),
    "DFT": (1, 2),
    "Expand": (1,),
    "HammingWindow": (0,),
    "HannWindow": (0,),
    "MaxUnpool": (2,),
    "MelWeightMatrix": (0, 1),
    "OneHot": (1,),
    "Pad": (1, 3),
    "Range": (0, 1, 2),
    "ReduceL1": (1,),
    "ReduceL2": (1,),
    "ReduceLogSum": (1,),
    "ReduceLogSumExp": (1,),
    "ReduceMax": (1,),
    "ReduceMean": (1,),
    "ReduceMin": (1,),
    "ReduceProd": (1,),
    "ReduceSum": (1,),
    "ReduceSumSquare": (1,),
    "Reshape": (1,),
    "Resize": (2, 3),
    "STFT": (1, 3),
    "SequenceAt": (1,),
    "SequenceErase": (1,),
    "SequenceInsert": (2,),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "SplitToSequence": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Unsqueeze": (1,),
    "com.microsoft::CropAndResize": (3,),
    "com.microsoft::ExpandDims": (1,),
    "com.microsoft::Pad": (1,),
    "com.microsoft::Range": (0, 1, 2),
}
"""Operator -> the inputs whose data decide the shape of its outputs."""

_INDEX_OUTPUTS: Mapping[str, int] = {"ArgMax": 0, "ArgMin": 0, "TopK": 1}
"""Operator -> which of its outputs is an index along its axis."""

_LABEL_OUTPUTS: Mapping[str, int] = {
    **_INDEX_OUTPUTS,
    **{f"ai.onnx.ml::{kind}Classifier": 0 for kind in ("Linear", "SVM", "TreeEnsemble")},
}
"""Operator -> which of its outputs is an index or a label."""

_RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)


@dataclass(frozen=True)
class Refusal:
    """A node that cannot be explained: itself, the node of the main graph that holds it, and the reason."""

    node: NodeProto
    outer: NodeProto
    reason: str


@dataclass
class Dependence:
    """What a walk over nodes finds.

    Attributes
    ----------
    varying : values whose data depend on the fed inputs (or on chance).
    elastic : values whose shape does.
    refusals : nodes that cannot be explained, needed or not.
    constants : the values known so far of names that do not depend on the inputs.
    """

    varying: set[str]
    elastic: set[str] = field(default_factory=set)
    refusals: list[Refusal] = field(default_factory=list)
    constants: Mapping[str, Any] = field(default_factory=dict)

    def depends(self, names: Iterable[str]) -> bool:
        """Tell whether any of `names` is no constant."""
        return any(name in self.varying or name in self.elastic for name in names if name)


def operator(node: NodeProto) -> str:
    """Return ``"Relu"``, or ``"com.microsoft::Gelu"`` outside the standard domain."""
    return f"{node.domain}::{node.op_type}" if node.domain else node.op_type


def dependence(graph: GraphProto, fed: Iterable[str], constants: Mapping[str, Any] | None = None) -> Dependence:
    """Find what depends on the values `fed`.

    Parameters
    ----------
    graph : a main graph, nodes in topological order.
    constants : known values, where there are some already; they tell a Dropout in training from one that is not.
    """
    found = Dependence(set(fed), constants=constants or {})
    for node in graph.node:
        _visit(node, node, found)
    return found


def needed(graph: GraphProto, outputs: Iterable[str], found: Dependence) -> set[str]:
    """Return the values that are no constants and on which `outputs` depend."""
    reached = {name for name in outputs if found.depends([name])}
    for node in reversed(graph.node):
        if any(name in reached for name in node.output):
            reached.update(name for name in data_inputs(node, found) if found.depends([name]))
    return reached


def labelling(graph: GraphProto, output: str, found: Dependence) -> NodeProto | None:
    """Return a node whose index or label is all that `output` depends on; None where it depends on more."""
    labels = {
        node.output[_LABEL_OUTPUTS[kind]]: node
        for node in graph.node
        if (kind := operator(node)) in _LABEL_OUTPUTS and len(node.output) > _LABEL_OUTPUTS[kind]
    }
    reached, made = {output}, set()
    for node in reversed(graph.node):
        made.update(node.output)
        if any(name in reached and name not in labels for name in node.output):
            reached.update(name for name in data_inputs(node, found) if found.depends([name]))
    return next((node for name, node in labels.items() if name in reached), None) if reached <= made else None


def standing(graph: GraphProto, outputs: Iterable[str], found: Dependence) -> list[Refusal]:
    """Return the refusals of nodes on which `outputs` depend."""
    reached = needed(graph, outputs, found)
    return [refusal for refusal in found.refusals if any(name in reached for name in refusal.outer.output)]


def data_inputs(node: NodeProto, found: Dependence) -> list[str]:
    """Return the inputs and captures of `node`, without those of which it reads only a fixed shape or type."""
    cut = _SHAPE_ONLY.get(operator(node))
    names = [name for position, name in enumerate(node.input) if position != cut or name in found.elastic]
    return [name for name in (*names, *captured(node)) if name]


def _visit(node: NodeProto, outer: NodeProto, found: Dependence) -> None:
    kind = operator(node)
    made = [name for name in node.output if name]
    if kind in ("Loop", "Scan", "If"):
        _WITH_BODY[kind](node, outer, found)
        return
    for body in bodies(node):
        if found.depends([*node.input, *captured(node)]):
            found.varying.update(value.name for value in body.input)
        _walk(body, outer, found)
    reason = _refusal(node, kind, found)
    if reason:
        found.refusals.append(Refusal(node, outer, reason))
    if kind in _RANDOM or found.depends(data_inputs(node, found)):
        found.varying.update(name for name in made if not _is_only_index(node, name, found))
    if any(name in found.elastic for name in node.input) or (reason and "shape" in reason):
        found.elastic.update(made)


def _refusal(node: NodeProto, kind: str, found: Dependence) -> str | None:
    """Return why `node` cannot be explained, None if nothing here speaks against it."""
    if kind in _RANDOM:
        return "it is random"
    if node.domain == "com.microsoft.nchwc":
        return (
            "it is in a memory layout for one kind of processor: save the model at ORT_ENABLE_EXTENDED or without "
            "graph optimisation"
        )
    if kind in _DYNAMIC:
        if found.depends(node.input):
            remedy = "; where a mask picks values (x[mask]), choose with Where, which leaves them at their places"
            return "the shape of its output depends on data" + remedy * (kind == "NonZero")
        return None
    for position in _SHAPE_INPUTS.get(kind, ()):
        if position < len(node.input) and found.depends([node.input[position]]):
            return f"the shape of its output depends on data, through its input {node.input[position]!r}"
    if kind == "Dropout" and len(node.input) > 2 and node.input[2]:
        if found.depends([node.input[2]]):
            return "whether it is in training mode depends on data"
        ratio = found.constants.get(node.input[1], 0.5)
        if np.any(found.constants.get(node.input[2], False)) and np.any(ratio):
            return "it is random: it is in training mode"
    if kind == "BatchNormalization" and _attribute(node, "training_mode", 0):
        return "it is in training mode, where the rows of a batch are normalised together"
    return None


def _is_only_index(node: NodeProto, name: str, found: Dependence) -> bool:
    """Whether the output `name` of `node` is an index along an axis of length 1: PyTorch sorts its batch by length."""
    position = _INDEX_OUTPUTS.get(operator(node))
    data = found.constants.get(node.input[0]) if position is not None and node.output[position] == name else None
    axis = _attribute(node, "axis", -1 if node.op_type == "TopK" else 0)
    return isinstance(data, np.ndarray) and not found.elastic.intersection(node.input) and data.shape[axis] == 1


def _attribute(node: NodeProto, name: str, default: Any) -> Any:
    for attribute in node.attribute:
        if attribute.name == name:
            return helper.get_attribute_value(attribute)
    return default


def _body(node: NodeProto, name: str = "body") -> GraphProto:
    graph: GraphProto = _attribute(node, name, None)
    return graph


def _walk(body: GraphProto, outer: NodeProto, found: Dependence) -> None:
    for node in body.node:
        _visit(node, outer, found)


def _mark(found: Dependence, sources: Iterable[str], targets: Iterable[str]) -> bool:
    """Let each target depend as its source does; tell whether that was news."""
    news = False
    for source, target in zip(sources, targets, strict=False):
        for names in (found.varying, found.elastic):
            if source in names and target and target not in names:
                names.add(target)
                news = True
    return news


def _states(
    node: NodeProto, outer: NodeProto, found: Dependence, inputs: list[str], results: list[str], states: list[str]
) -> list[str]:
    """Walk a body until its states depend on nothing new; return the names of what the body returns."""
    body = _body(node)
    _mark(found, node.input, inputs)
    while True:
        before = len(found.refusals)
        _walk(body, outer, found)
        if not _mark(found, results, states):
            return [value.name for value in body.output]
        del found.refusals[before:]


def _loop(node: NodeProto, outer: NodeProto, found: Dependence) -> None:
    body = _body(node)
    inputs = [value.name for value in body.input]
    results = [value.name for value in body.output]
    carried = len(inputs) - 2
    _states(node, outer, found, inputs, results[1 : 1 + carried], inputs[2:])
    if found.depends([*node.input[:2], results[0]]):
        found.refusals.append(Refusal(node, outer, "how often it runs depends on data"))
        found.varying.update(filter(None, node.output))
        found.elastic.update(filter(None, node.output))
    _mark(found, node.input[2:], node.output)
    _mark(found, results[1:], node.output)


def _scan(node: NodeProto, outer: NodeProto, found: Dependence) -> None:
    body = _body(node)
    inputs = [value.name for value in body.input]
    results = [value.name for value in body.output]
    states = len(inputs) - int(_attribute(node, "num_scan_inputs", 0))
    _states(node, outer, found, inputs, results[:states], inputs[:states])
    _mark(found, node.input[:states], node.output)
    _mark(found, results, node.output)


def _if(node: NodeProto, outer: NodeProto, found: Dependence) -> None:
    before = len(found.refusals)
    for branch in bodies(node):
        _walk(branch, outer, found)
        _mark(found, [value.name for value in branch.output], node.output)
    if found.depends(node.input):
        found.varying.update(filter(None, node.output))
    else:  # one of them is not run; the other will be part of the graph, and what stands in the way there remains
        del found.refusals[before:]


_WITH_BODY = {"Loop": _loop, "Scan": _scan, "If": _if}
