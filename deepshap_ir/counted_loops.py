"""A Loop whose number of iterations is known, as a Scan.

What does not vary from run to run, the number of the iteration and all that follows from it, is known per iteration: it
becomes constant sequences. What the body reads at a known position of an outer value (the element of the iteration,
most often) is read before the loop, and is a sequence too: reading it inside would cost the whole value at each element
of the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, ValueInfoProto, helper, numpy_helper

from deepshap_ir.dependence import Dependence, dependence, operator
from deepshap_ir.graph import Array
from deepshap_ir.iterations import Names
from deepshap_ir.subgraphs import body_of, captured, fresh, graph_captures, rename_captures, replaced

Run = Callable[[NodeProto], Mapping[str, Any]]
"""The Loop, with more stacked outputs -> its outputs."""


class UnfitError(Exception):
    """Why a loop cannot be a Scan.

    Attributes
    ----------
    final : whether it cannot be written out either.
    """

    def __init__(self, reason: str, final: bool = False) -> None:
        super().__init__(reason)
        self.final = final


class CountedLoop:
    """A Loop while it becomes a Scan.

    Parameters
    ----------
    node : the Loop.
    found : what depends on the fed values, in the graph around it.
    values : of the node's inputs and of what its body captures.
    """

    def __init__(self, node: NodeProto, found: Dependence, values: Mapping[str, Any], names: Names) -> None:
        self.node, self.found, self.values, self.names = node, found, values, names
        self.body = GraphProto()
        self.body.CopyFrom(body_of(node))
        self.states = list(node.input[2:])
        self.counter, self.condition, *self.inputs = [value.name for value in self.body.input]
        self.condition_shape = (1,) * len(self.body.input[1].type.tensor_type.shape.dim)
        self.results = [value.name for value in self.body.output[1:]]
        self.carried = len(self.inputs)

    def length(self, run: Run) -> int:
        """Return how often the body runs."""
        return len(self._stacks([self.counter], run)[self.counter])

    def as_scan(self, run: Run) -> tuple[list[NodeProto], NodeProto, dict[str, Array]]:
        """Return the nodes around the Scan, the Scan, and the first element of each of its sequences.

        Raises
        ------
        UnfitError : something has another shape in each iteration.
        """
        invariant = self._without_invariants()
        varying, moving = self._varying()
        stacked = [k for k, name in enumerate(self.node.output[self.carried :]) if name]
        wanted = [self.results[k] for k in (*varying, *(self.carried + k for k in stacked))]
        nodes = _alive(self.body, wanted)
        fixed = [k for k in range(self.carried) if k not in varying and k not in invariant]
        known = [self.counter, *(self.inputs[k] for k in fixed)]
        outer = set(graph_captures(self.body))
        reads = [node for node in nodes if node.input and node.input[0] in outer and self._at_known(node, moving)]
        found = self._stacks([*known, *(name for node in reads for name in (*node.input[1:], *node.output))], run)

        around: list[NodeProto] = []
        sequences: dict[str, str] = {}
        for node in reads:
            made = self._read_before(node, found)
            if made:
                sequences[node.output[0]] = made[-1].output[0]
                around += made
        nodes = [node for node in nodes if node.output[0] not in sequences]
        used = {name for node in nodes for name in (*node.input, *captured(node))} | set(wanted)
        for name in [name for name in known if name in used] or ([] if sequences else [self.counter]):
            constant, sequences[name] = self.names.constant(found[name], f"{name}/all")
            around.append(constant)
        for k in fixed:
            if self.node.output[k]:
                around.append(_constant(found[self.node.output[k]], self.node.output[k]))
        around += [self.names.node("Identity", [self.states[k]], name) for k, name in invariant.items() if name]
        scan = self._scan(nodes, varying, wanted, sequences, stacked)
        return around, scan, {name: np.asarray(found[name][0]) for name in sequences}

    def _without_invariants(self) -> dict[int, str]:
        """Let the body read what it hands on unchanged from outside; such states, with the names of their outputs."""
        source = {node.output[0]: node.input[0] for node in self.body.node if operator(node) == "Identity"}
        invariant = {}
        for k, name in enumerate(self.inputs):
            result = self.results[k]
            while result in source:
                result = source[result]
            if result == name:
                invariant[k] = self.node.output[k]
        inputs = [value for k, value in enumerate(self.body.input) if k - 2 not in invariant]
        del self.body.input[:]
        self.body.input.extend(inputs)
        rename_captures(self.body, {self.inputs[k]: self.states[k] for k in invariant})
        self.results = [value.name for value in self.body.output[1:]]
        for k in invariant:
            self.inputs[k] = self.states[k]
        return invariant

    def _varying(self) -> tuple[list[int], Dependence]:
        """The states that the fed values reach, and what in the body depends on them."""
        outside = [name for name in graph_captures(self.body) if self.found.depends([name])]
        own = {k for k, name in enumerate(self.inputs) if name in {value.name for value in self.body.input}}
        varying = {k for k in own if self.found.depends([self.states[k]])}
        while True:
            moving = dependence(self.body, [*outside, *(self.inputs[k] for k in varying)])
            more = {k for k in own - varying if moving.depends([self.results[k]])}
            if not more:
                return sorted(varying), moving
            varying |= more

    def _at_known(self, node: NodeProto, moving: Dependence) -> bool:
        """Whether `node` reads a varying tensor at positions that do not vary."""
        return (
            operator(node) in ("Gather", "Slice")
            and isinstance(self.values.get(node.input[0]), np.ndarray)
            and moving.depends(node.input[:1])
            and not moving.depends(node.input[1:])
        )

    def _stacks(self, wanted: Sequence[str], run: Run) -> dict[str, Array]:
        """The values of names in the body, ``[T, *shape]``, and the last ones of the states, by name outside."""
        extended = NodeProto()
        extended.CopyFrom(self.node)
        body = body_of(extended)
        outputs = {name: fresh(f"{name}/stacked", self.names.values) for name in wanted if name}
        for name, output in outputs.items():
            body.node.append(helper.make_node("Identity", [name], [f"{output}/one"], name=f"{output}/one"))
            body.output.append(ValueInfoProto(name=f"{output}/one"))
        extended.output.extend(outputs.values())
        found = run(extended)
        last = {name: np.asarray(found[name]) for name in self.node.output[: self.carried] if name}
        return {name: np.asarray(found[output]) for name, output in outputs.items()} | last

    def _read_before(self, node: NodeProto, found: Mapping[str, Array]) -> list[NodeProto]:
        """Nodes that read all that `node` reads, in all iterations, ``[T, *shape]``; none where it stays in place."""
        shape = np.shape(self.values[node.input[0]])
        if operator(node) == "Gather":
            places = {next((a.i for a in node.attribute if a.name == "axis"), 0) % len(shape): found[node.input[1]]}
        else:
            places = _slices(shape, [found[name] if name else None for name in node.input[1:]])
        moving = [axis for axis, indices in places.items() if (indices != indices[:1]).any()]
        if not moving:
            return []
        if len(moving) > 1:
            raise UnfitError(f"{operator(node)} node {node.name!r} moves along several axes")
        nodes, value, last = [], node.input[0], moving[0]
        for axis, indices in sorted(places.items(), key=lambda place: place[0] == last):
            if np.array_equal(indices, np.arange(shape[axis])):
                continue  # every element in turn
            constant, index = self.names.constant(indices if axis == last else indices[0], f"{value}/positions")
            made = fresh(f"{value}/read", self.names.values)
            nodes += [constant, self.names.node("Gather", [value, index], made, axis=axis)]
            value = made
        order = [last, *(axis for axis in range(len(shape) + places[last].ndim - 1) if axis != last)]
        made = fresh(f"{value}/by_time", self.names.values)
        if order == sorted(order):
            return [*nodes, self.names.node("Identity", [value], made)]
        return [*nodes, self.names.node("Transpose", [value], made, perm=order)]

    def _scan(
        self,
        nodes: Sequence[NodeProto],
        varying: Sequence[int],
        wanted: Sequence[str],
        sequences: Mapping[str, str],
        stacked: Sequence[int],
    ) -> NodeProto:
        body = replaced(self.body, [_constant(np.full(self.condition_shape, True), self.condition), *nodes])
        del body.input[:], body.output[:]
        body.input.extend(ValueInfoProto(name=name) for name in [*(self.inputs[k] for k in varying), *sequences])
        body.output.extend(ValueInfoProto(name=name) for name in wanted)
        outputs = [self.node.output[k] or fresh(f"{self.inputs[k]}/last", self.names.values) for k in varying]
        outputs += [self.node.output[self.carried + k] for k in stacked]
        inputs = [*(self.states[k] for k in varying), *sequences.values()]
        return helper.make_node("Scan", inputs, outputs, name=self.node.name, body=body, num_scan_inputs=len(sequences))


def _alive(body: GraphProto, wanted: Sequence[str]) -> list[NodeProto]:
    """The nodes of a body that the values `wanted` need."""
    names, kept = set(wanted), []
    for node in reversed(body.node):
        if not names.isdisjoint(node.output):
            kept.append(node)
            names.update((*node.input, *captured(node)))
    return kept[::-1]


def _constant(array: Array, name: str) -> NodeProto:
    return helper.make_node("Constant", [], [name], name=f"{name}/constant", value=numpy_helper.from_array(array, name))


def _slices(shape: Sequence[int], operands: Sequence[Array | None]) -> dict[int, Array]:
    """The positions that the Slices of all iterations read, axis -> ``[T, length]``."""
    starts, ends, axes, steps = (*operands, None, None)[:4]
    assert starts is not None
    assert ends is not None
    places: dict[int, list[Array]] = {}
    for t in range(len(starts)):
        for k, (start, end) in enumerate(zip(starts[t], ends[t], strict=True)):
            axis = int(axes[t][k]) % len(shape) if axes is not None else k
            step = int(steps[t][k]) if steps is not None else 1
            positions = range(shape[axis])[slice(int(start), _end(int(end), shape[axis], step), step)]
            places.setdefault(axis, []).append(np.array(positions, np.int64))
    if any(len(rows) != len(starts) or len({len(row) for row in rows}) > 1 for rows in places.values()):
        raise UnfitError("a Slice reads another number of elements in each iteration")
    return {axis: np.stack(rows) for axis, rows in places.items()}


def _end(end: int, length: int, step: int) -> int | None:
    """The end of a slice in Python's sense: one before the first element has no number there."""
    return None if step < 0 and end < -length else end
