"""Loop, Scan and SequenceMap written out: the nodes of the body once per iteration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from deepshap_ir.graph import Array
from deepshap_ir.importing.subgraphs import body_of, defined, fresh, rename
from deepshap_ir.onnx_io import attribute_value, scan_node


@dataclass
class Names:
    """The names of values and of nodes that are taken."""

    values: set[str]
    nodes: set[str]

    def constant(self, array: Array, name: str) -> tuple[NodeProto, str]:
        """Return a Constant node and the name of its value, `name` where that is free."""
        name = fresh(name, self.values)
        tensor = numpy_helper.from_array(np.asarray(array), name)
        return helper.make_node("Constant", [], [name], name=fresh(name, self.nodes), value=tensor), name

    def node(self, op_type: str, inputs: Sequence[str], output: str, **attributes: Any) -> NodeProto:
        """Return a node that makes `output` and is called like it."""
        return helper.make_node(op_type, list(inputs), [output], name=fresh(output, self.nodes), **attributes)


Given = Callable[[int], tuple[list[NodeProto], list[str]]]
"""Number of the iteration -> nodes that prepare what it gets beside the states, and the names of that."""


def written_out(
    node: NodeProto, names: Names, count: int, states: Sequence[str], given: Given, states_first: bool = True
) -> tuple[list[NodeProto], list[str], list[list[str]]]:
    """Write the body of `node` `count` times.

    Parameters
    ----------
    states : names of the initial states.
    states_first : whether the body takes the states before the rest.

    Returns
    -------
    The nodes; the names of the last states; and per iteration those of all other results of the body.
    """
    body = body_of(node)
    nodes: list[NodeProto] = []
    shared = {tensor.name: fresh(tensor.name, names.values) for tensor in body.initializer}
    for tensor in body.initializer:
        name = shared[tensor.name]
        nodes.append(helper.make_node("Constant", [], [name], name=fresh(name, names.nodes), value=tensor))
    current, rest = list(states), []
    for t in range(count):
        before, others = given(t)
        nodes += before
        copy = GraphProto()
        copy.CopyFrom(body)
        inputs = [*current, *others] if states_first else [*others, *current]
        mapping = dict(zip((value.name for value in body.input), inputs, strict=True))
        own = defined(body) - set(mapping) - set(shared) - {""}
        mapping |= {name: fresh(f"{name}/{t}", names.values) for name in sorted(own)} | shared
        rename(copy, mapping)
        for inner in copy.node:
            inner.name = fresh(f"{inner.name}/{t}", names.nodes)
        nodes += copy.node
        results = [value.name for value in copy.output]
        current, others = results[: len(states)], results[len(states) :]
        rest.append(others)
    return nodes, current, rest


def loop_written_out(node: NodeProto, names: Names, count: int, empty: dict[str, Array]) -> list[NodeProto]:
    """Return the nodes of `count` iterations of a Loop; `empty` are the stacked outputs where there is none."""
    body = body_of(node)
    carried = len(body.input) - 2

    def given(t: int) -> tuple[list[NodeProto], list[str]]:
        pairs = [
            names.constant(np.full(_shape(value), number), f"{node.name}/{value.name}/{t}")
            for value, number in zip(body.input, (np.int64(t), True), strict=False)
        ]
        return [constant for constant, _ in pairs], [name for _, name in pairs]

    nodes, last, rest = written_out(_without_condition(node), names, count, node.input[2:], given, states_first=False)
    nodes += _same(names, last, node.output[:carried])
    for k, output in enumerate(node.output[carried:]):
        if output and count:
            nodes += stacked(names, [results[k] for results in rest], output, 0)
        elif output:
            tensor = numpy_helper.from_array(empty[output], output)
            nodes.append(helper.make_node("Constant", [], [output], name=fresh(output, names.nodes), value=tensor))
    return nodes


def _without_condition(node: NodeProto) -> NodeProto:
    """A Loop whose body does not return the condition."""
    copy = NodeProto()
    copy.CopyFrom(node)
    del body_of(copy).output[0]
    return copy


def _shape(value: Any) -> tuple[int, ...]:
    """``(1,)`` where the body of a Loop declares its counter or condition so, else ``()``."""
    return (1,) * len(value.type.tensor_type.shape.dim)


def scan_layout(node: NodeProto) -> tuple[int, list[list[int]], list[list[int]]]:
    """Return the number of states of a Scan, and axes and directions of its sequences and of its stacked outputs."""
    given = {a.name: attribute_value(a) for a in node.attribute if a.name != "body"}
    sequences = given["num_scan_inputs"]
    n = len(node.input) - sequences
    counts = {"input": sequences, "output": len(node.output) - n}
    axes, directions = (
        [given.get(f"scan_{side}_{what}") or [0] * count for side, count in counts.items()]
        for what in ("axes", "directions")
    )
    return n, axes, directions


def scan_written_out(node: NodeProto, names: Names, count: int) -> list[NodeProto]:
    """Return the nodes of all iterations of a Scan over `count` elements."""
    n, axes, directions = scan_layout(node)

    def given(t: int) -> tuple[list[NodeProto], list[str]]:
        nodes, elements = [], []
        for name, axis, direction in zip(node.input[n:], axes[0], directions[0], strict=True):
            index, position = names.constant(np.array(count - 1 - t if direction else t), f"{name}/position")
            elements.append(fresh(f"{name}/{t}", names.values))
            nodes += [index, names.node("Gather", [name, position], elements[-1], axis=axis)]
        return nodes, elements

    nodes, last, rest = written_out(node, names, count, node.input[:n], given)
    nodes += _same(names, last, node.output[:n])
    for k, (output, axis, direction) in enumerate(zip(node.output[n:], axes[1], directions[1], strict=True)):
        if output:
            column = [results[k] for results in rest]
            nodes += stacked(names, column[::-1] if direction else column, output, axis)
    return nodes


def scan_along_first_axis(
    node: NodeProto, names: Names, count: int, inputs: Sequence[int], outputs: Sequence[int]
) -> list[NodeProto]:
    """Return a Scan whose sequences all lie along the first axis and run one way, and what arranges them so.

    Parameters
    ----------
    inputs, outputs : ranks of its inputs and outputs.
    """
    n, axes, directions = scan_layout(node)
    for k, name in enumerate(node.output):
        node.output[k] = name or fresh(f"{node.name}/unread", names.values)
    reverse = int(all(directions[0]))
    before: list[NodeProto] = []
    after: list[NodeProto] = []

    def flipped(name: str, output: str) -> list[NodeProto]:
        numbers = [
            names.constant(np.array([number]), f"{output}/{what}")
            for what, number in (("start", -1), ("end", -count - 1), ("axis", 0), ("step", -1))
        ]
        operands = [name, *(value for _, value in numbers)]
        return [*(constant for constant, _ in numbers), names.node("Slice", operands, output)]

    for k, (axis, direction) in enumerate(zip(axes[0], directions[0], strict=True), n):
        order = list(range(inputs[k]))
        order.insert(0, order.pop(axis))
        if order != sorted(order):
            moved = fresh(f"{node.input[k]}/by_time", names.values)
            before.append(names.node("Transpose", [node.input[k]], moved, perm=order))
            node.input[k] = moved
        if direction != reverse:
            turned = fresh(f"{node.input[k]}/reversed", names.values)
            before += flipped(node.input[k], turned)
            node.input[k] = turned
    for k, (axis, direction) in enumerate(zip(axes[1], directions[1], strict=True), n):
        order = list(range(1, outputs[k]))
        order.insert(axis if axis >= 0 else axis + outputs[k], 0)
        if order != sorted(order):
            moved = fresh(f"{node.output[k]}/by_time", names.values)
            after.insert(0, names.node("Transpose", [moved], node.output[k], perm=order))
            node.output[k] = moved
        if direction != reverse:
            turned = fresh(f"{node.output[k]}/reversed", names.values)
            after[:0] = flipped(turned, node.output[k])
            node.output[k] = turned
    plain = scan_node(node.input, node.output, body_of(node), len(axes[0]), bool(reverse), node.name)
    return [*before, plain, *after]


def map_written_out(node: NodeProto, names: Names, count: int, sequences: Sequence[bool]) -> list[NodeProto]:
    """Return the nodes of a SequenceMap over `count` elements; `sequences` tells which inputs are sequences."""

    def given(t: int) -> tuple[list[NodeProto], list[str]]:
        nodes, elements = [], []
        for name, listed in zip(node.input, sequences, strict=True):
            elements.append(name)
            if listed:
                index, position = names.constant(np.array(t), f"{name}/position")
                elements[-1] = fresh(f"{name}/{t}", names.values)
                nodes += [index, names.node("SequenceAt", [name, position], elements[-1])]
        return nodes, elements

    nodes, _, rest = written_out(node, names, count, [], given)
    for k, output in enumerate(node.output):
        if output and count:
            nodes.append(names.node("SequenceConstruct", [results[k] for results in rest], output))
        elif output:
            dtype = body_of(node).output[k].type.tensor_type.elem_type or TensorProto.FLOAT
            nodes.append(names.node("SequenceEmpty", [], output, dtype=dtype))
    return nodes


def stacked(names: Names, elements: Sequence[str], output: str, axis: int) -> list[NodeProto]:
    """Return the nodes that stack `elements` along a new axis."""
    constant, at = names.constant(np.array([axis]), f"{output}/axis")
    rows = [fresh(f"{name}/row", names.values) for name in elements]
    nodes = [constant, *(names.node("Unsqueeze", [a, at], b) for a, b in zip(elements, rows, strict=True))]
    return [*nodes, names.node("Concat", rows, output, axis=axis)]


def _same(names: Names, sources: Sequence[str], outputs: Sequence[str]) -> list[NodeProto]:
    return [names.node("Identity", [a], b) for a, b in zip(sources, outputs, strict=False) if b]
