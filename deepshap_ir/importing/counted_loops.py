"""A Loop whose number of iterations is known, as a Scan.

What does not vary from run to run, the number of the iteration and all that follows from it, is known per iteration: it
becomes constants and constant sequences. So three more things leave the loop: what no iteration changes is computed
before it; what is read at a known position of an outer value (the element of the iteration, most often) is read before
it, and what is written at a known position of a state or appended to it is put there after it, each once for all
iterations. Inside, every iteration of the backward pass would go through the whole value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, ValueInfoProto, helper, numpy_helper

from deepshap_ir.graph import Array
from deepshap_ir.importing.dependence import Dependence, dependence, operator
from deepshap_ir.importing.iterations import Names
from deepshap_ir.importing.subgraphs import body_of, captured, defined, fresh, graph_captures, rename_captures, replaced

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

    Attributes
    ----------
    node : the Loop.
    initial : the values of its initial states.
    found : what depends on the fed values, in the graph around it.
    run : gives the outputs of the Loop.
    body : what is left of its body.
    inputs, results : per state, its names in the body before and after an iteration; `results` goes on with the values
        to be stacked.
    varying, fixed : the states that the fed values reach, and those that they do not.
    known : values of the body that do not vary, though they may change from one iteration to the next.
    stacked : name in the body -> name of the stacked output.
    sequences : name in the body -> name of the sequence whose element it is.
    before, after : nodes around the Scan.
    """

    def __init__(self, node: NodeProto, initial: Sequence[Any], found: Dependence, names: Names, run: Run) -> None:
        self.node, self.initial, self.found, self.names, self.run = node, initial, found, names, run
        self.body = GraphProto()
        self.body.CopyFrom(body_of(node))
        self.states = list(node.input[2:])
        self.counter, self.condition, *self.inputs = [value.name for value in self.body.input]
        self.condition_shape = (1,) * len(self.body.input[1].type.tensor_type.shape.dim)
        self.results = [value.name for value in self.body.output[1:]]
        self.varying: list[int] = []
        self.fixed: list[int] = []
        self.known: list[str] = []
        self.stacked: dict[str, str] = {}
        self.sequences: dict[str, str] = {}
        self.before: list[NodeProto] = []
        self.after: list[NodeProto] = []

    def length(self) -> int:
        """Return how often the body runs."""
        return len(self._by_iteration([self.counter])[self.counter])

    def as_scan(self) -> tuple[NodeProto, dict[str, Array]]:
        """Return the Scan, and the first element of each of its sequences.

        Raises
        ------
        UnfitError : something has another shape in each iteration.
        """
        self._leave_out_invariants()
        moving = self._find_varying()
        carried = len(self.inputs)
        for result, name in zip(self.results[carried:], self.node.output[carried:], strict=True):
            if name:
                self.stacked[result] = name
        self._move_out()
        self._find_known(moving)
        reads = [node for node in self._alive() if self._is_read(node, moving)]
        writes = {k: node for k in self.varying if (node := self._written(k, moving)) is not None}
        operands = [name for node in reads for name in (*node.input[1:], *node.output)]
        operands += [node.input[1] for node in writes.values() if operator(node) == "ScatterND"]
        shapes = [node.input[0] for node in reads]
        shapes += [node.input[1] for node in writes.values() if operator(node) == "Concat"]
        found = self._by_iteration([self.counter, *self.known, *operands], shapes)
        for node in reads:
            self._read_before(node, found)
        for k, node in writes.items():
            _WRITES[operator(node)](self, k, node, found)
        used = {name for node in self._alive() for name in (*node.input, *captured(node))} | set(self._wanted())
        constants = [_constant(found[name][0], name) for name in self.known if name in used and _is_one(found[name])]
        moved = [name for name in self.known if name in used and not _is_one(found[name])]
        for name in moved or ([] if self.sequences else [self.counter]):
            constant, self.sequences[name] = self.names.constant(found[name], f"{name}/all")
            self.before.append(constant)
        self.before += [_constant(found[name], name) for k in self.fixed if (name := self.node.output[k])]
        return self._scan(constants), {name: np.asarray(found[name][0]) for name in self.sequences}

    def _wanted(self) -> list[str]:
        """What the body has to compute."""
        return list(dict.fromkeys([*(self.results[k] for k in self.varying), *self.stacked]))

    def _alive(self) -> list[NodeProto]:
        """The nodes of the body that compute it, but for what is known and what is read before the loop."""
        names, kept = set(self._wanted()), []
        given = {*self.known, *self.sequences}
        for node in reversed(self.body.node):
            if not (names & set(node.output)) <= given:
                kept.append(node)
                names.update((*node.input, *captured(node)))
        return kept[::-1]

    def _leave_out_invariants(self) -> None:
        """Let the body read what it hands on unchanged from outside."""
        source = self._sources()
        invariant = set()
        for k, name in enumerate(self.inputs):
            result = self.results[k]
            while result in source:
                result = source[result]
            if result == name:
                invariant.add(k)
                if self.node.output[k]:
                    self.before.append(self.names.node("Identity", [self.states[k]], self.node.output[k]))
        inputs = [value for k, value in enumerate(self.body.input) if k - 2 not in invariant]
        del self.body.input[:]
        self.body.input.extend(inputs)
        rename_captures(self.body, {self.inputs[k]: self.states[k] for k in invariant})
        self.results = [value.name for value in self.body.output[1:]]

    def _sources(self) -> dict[str, str]:
        """Output of an Identity of the body -> its input."""
        return {node.output[0]: node.input[0] for node in self.body.node if operator(node) == "Identity"}

    def _find_varying(self) -> Dependence:
        """Find the states that the fed values reach; what in the body depends on them."""
        outside = [name for name in graph_captures(self.body) if self.found.depends([name])]
        present = {value.name for value in self.body.input}
        own = {k for k, name in enumerate(self.inputs) if name in present}
        varying = {k for k in own if self.found.depends([self.states[k]])}
        while True:
            moving = dependence(self.body, [*outside, *(self.inputs[k] for k in varying)])
            more = {k for k in own - varying if moving.depends([self.results[k]])}
            if not more:
                self.varying = sorted(varying)
                self.fixed = sorted(own - varying)
                return moving
            varying |= more

    def _move_out(self) -> None:
        """Move all that no iteration changes before the loop."""
        self.before += [_constant(numpy_helper.to_array(tensor), tensor.name) for tensor in self.body.initializer]
        del self.body.initializer[:]
        reached, kept = {value.name for value in self.body.input}, []
        for node in self.body.node:
            if reached.intersection((*node.input, *captured(node))):
                reached.update(node.output)
                kept.append(node)
            else:
                self.before.append(node)
        self.body.CopyFrom(replaced(self.body, kept))

    def _find_known(self, moving: Dependence) -> None:
        """Find what varying values of the body are made of and is known, though it may change."""
        inside = defined(self.body) - {self.condition}
        nodes = [node for node in self._alive() if moving.depends(node.output)]
        read = [name for node in nodes for name in (*node.input, *captured(node))] + self._wanted()
        self.known = [name for name in dict.fromkeys(read) if name in inside and not moving.depends([name])]

    def _is_read(self, node: NodeProto, moving: Dependence) -> bool:
        """Whether `node` reads a varying outer value at positions that do not vary."""
        return (
            operator(node) in ("Gather", "Slice")
            and node.input[0] in graph_captures(self.body)
            and moving.depends(node.input[:1])
            and not moving.depends(node.input[1:])
        )

    def _written(self, k: int, moving: Dependence) -> NodeProto | None:
        """The node that writes to state `k` or appends to it, where nothing else reads the state."""
        readers = [n for n in self._alive() if self.inputs[k] in (*n.input, *captured(n))]
        if len(readers) != 1 or operator(readers[0]) not in _WRITES or self.inputs[k] in self.results:
            return None
        node, source, result = readers[0], self._sources(), self.results[k]
        path = [result]
        while result in source:
            result = source[result]
            path.append(result)
        others = [n for n in self._alive() if n.output[0] not in path and set(path) & {*n.input, *captured(n)}]
        alone = result == node.output[0] and not others and path[0] not in self.stacked
        if not alone or list(node.input).index(self.inputs[k]) or self.inputs[k] in node.input[1:]:
            return None
        fits = {
            "ScatterND": not moving.depends(node.input[1:2])
            and not any(a.name == "reduction" and a.s not in (b"", b"none") for a in node.attribute),
            "SequenceInsert": len(node.input) == 2 and isinstance(self.initial[k], list) and not self.initial[k],
            "Concat": len(node.input) == 2,
        }
        return node if fits[operator(node)] else None

    def _by_iteration(self, wanted: Sequence[str], shapes: Sequence[str] = ()) -> dict[str, Array]:
        """The values of names in the body, ``[T, *shape]``, and the last ones of the states, by name outside.

        Parameters
        ----------
        shapes : names of which the shape is wanted; its key is ``"shape of name"``.
        """
        extended = NodeProto()
        extended.CopyFrom(self.node)
        body = body_of(extended)
        asked = [("Identity", name, name) for name in wanted if name] + [("Shape", n, f"shape of {n}") for n in shapes]
        outputs = {key: fresh(f"{name}/stacked", self.names.values) for _, name, key in asked}
        for op_type, name, key in dict.fromkeys(asked):
            one = f"{outputs[key]}/one"
            body.node.append(helper.make_node(op_type, [name], [one], name=one))
            body.output.append(ValueInfoProto(name=one))
        extended.output.extend(outputs.values())
        found = self.run(extended)
        last = {name: np.asarray(found[name]) for k in self.fixed if (name := self.node.output[k])}
        return {key: np.asarray(found[output]) for key, output in outputs.items()} | last

    def _read_before(self, node: NodeProto, found: Mapping[str, Array]) -> None:
        """Read all that `node` reads, in all iterations, before the loop, ``[T, *shape]``."""
        shape = found[f"shape of {node.input[0]}"][0].tolist()
        if operator(node) == "Gather":
            places = {next((a.i for a in node.attribute if a.name == "axis"), 0) % len(shape): found[node.input[1]]}
        else:
            places = _slices(shape, [found[name] if name else None for name in node.input[1:]])
        moving = [axis for axis, indices in places.items() if (indices != indices[:1]).any()]
        if len(moving) != 1:
            return
        value, last = node.input[0], moving[0]
        for axis, indices in sorted(places.items(), key=lambda place: place[0] == last):
            if np.array_equal(indices, np.arange(shape[axis])):
                continue  # every element in turn
            constant, index = self.names.constant(indices if axis == last else indices[0], f"{value}/positions")
            made = fresh(f"{value}/read", self.names.values)
            self.before += [constant, self.names.node("Gather", [value, index], made, axis=axis)]
            value = made
        order = [last, *(axis for axis in range(len(shape) + places[last].ndim - 1) if axis != last)]
        by_time = fresh(f"{value}/by_time", self.names.values)
        if order == sorted(order):
            self.before.append(self.names.node("Identity", [value], by_time))
        else:
            self.before.append(self.names.node("Transpose", [value], by_time, perm=order))
        self.sequences[node.output[0]] = by_time

    def _scatter_after(self, k: int, node: NodeProto, found: Mapping[str, Array]) -> None:
        """Write all that `node` writes, in all iterations, after the loop, unless it writes twice at one position."""
        positions = found[node.input[1]]
        rows = positions.reshape(-1, positions.shape[-1])
        if (rows < 0).any() or len(np.unique(rows, axis=0)) != len(rows):
            return
        updates = self._stack_instead(k, node.input[2])
        constant, indices = self.names.constant(positions, f"{node.input[1]}/all")
        if self.node.output[k]:
            operands = [self.states[k], indices, updates]
            self.after += [constant, self.names.node("ScatterND", operands, self.node.output[k])]

    def _insert_after(self, k: int, node: NodeProto, found: Mapping[str, Array]) -> None:
        """The sequence that `node` makes, of the rows of one tensor."""
        rows = self._stack_instead(k, node.input[1])
        if self.node.output[k]:
            self.after.append(self.names.node("SplitToSequence", [rows], self.node.output[k], axis=0, keepdims=0))

    def _concat_after(self, k: int, node: NodeProto, found: Mapping[str, Array]) -> None:
        """Append all that `node` appends, in all iterations, after the loop."""
        shape = found[f"shape of {node.input[1]}"][0].tolist()
        count = len(found[self.counter])
        rows = self._stack_instead(k, node.input[1])
        if not self.node.output[k]:
            return
        axis = next(a.i for a in node.attribute if a.name == "axis") % len(shape)
        moved, joined = (fresh(f"{rows}/{what}", self.names.values) for what in ("moved", "joined"))
        order = [*range(1, axis + 1), 0, *range(axis + 1, len(shape) + 1)]
        shape[axis] *= count
        constant, sizes = self.names.constant(np.array(shape), f"{rows}/shape")
        self.after += [
            constant,
            self.names.node("Transpose", [rows], moved, perm=order),
            self.names.node("Reshape", [moved, sizes], joined),
            self.names.node("Concat", [self.states[k], joined], self.node.output[k], axis=axis),
        ]

    def _stack_instead(self, k: int, name: str) -> str:
        """Stack the value `name` of the body in place of the state `k`; the name of the stack."""
        self.varying.remove(k)
        return self.stacked.setdefault(name, fresh(f"{name}/all", self.names.values))

    def _scan(self, constants: Sequence[NodeProto]) -> NodeProto:
        condition = _constant(np.full(self.condition_shape, True), self.condition)
        body = replaced(self.body, [condition, *constants, *self._alive()])
        del body.input[:], body.output[:]
        names = [*(self.inputs[k] for k in self.varying), *self.sequences]
        body.input.extend(ValueInfoProto(name=name) for name in names)
        results = [*(self.results[k] for k in self.varying), *self.stacked]
        body.output.extend(ValueInfoProto(name=name) for name in results)
        outputs = [self.node.output[k] or fresh(f"{self.inputs[k]}/last", self.names.values) for k in self.varying]
        return helper.make_node(
            "Scan",
            [*(self.states[k] for k in self.varying), *self.sequences.values()],
            [*outputs, *self.stacked.values()],
            name=self.node.name,
            body=body,
            num_scan_inputs=len(self.sequences),
        )


_WRITES = {
    "Concat": CountedLoop._concat_after,
    "ScatterND": CountedLoop._scatter_after,
    "SequenceInsert": CountedLoop._insert_after,
}


def _constant(array: Array, name: str) -> NodeProto:
    return helper.make_node("Constant", [], [name], name=f"{name}/constant", value=numpy_helper.from_array(array, name))


def _is_one(stack: Array) -> bool:
    """Whether all elements of a stack are equal."""
    return bool((stack == stack[:1]).all())


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
