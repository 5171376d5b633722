"""Sequence operators between tensors: a sequence of known length is a list of names, and disappears."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from deepshap_ir.graph import Array, Graph, Node
from deepshap_ir.importing.subgraphs import fresh


def resolve_sequences(graph: Graph, protected: frozenset[str]) -> Graph:
    """Replace sequence operators by Split, Concat, Squeeze, Unsqueeze and Identity on their elements.

    Every length and position is a constant here: the importer has refused the others. A sequence that something else
    reads, a Loop or a SequenceMap say, is packed again with SequenceConstruct for it.
    """
    lists = {name: value for name, value in graph.constants.items() if isinstance(value, list)}
    if not lists and not any(node.op_type in _OPERATORS for node in graph.nodes):
        return graph
    work = _Work(graph)
    for name, arrays in lists.items():
        work.elements[name] = [work.constant(f"{name}/{i}", array) for i, array in enumerate(arrays)]
    for node in graph.nodes:
        work.visit(node)
    for name in graph.outputs:
        work.pack(name)
    return replace(graph, nodes=tuple(work.nodes), constants=work.constants, shapes=work.shapes, dtypes=work.dtypes)


class _Work:
    """The new nodes and values.

    Attributes
    ----------
    elements : sequence name -> the names of its elements.
    rows : sequence name -> the tensor and the axis of which it has the rows, where it was split so.
    """

    def __init__(self, graph: Graph) -> None:
        self.nodes: list[Node] = []
        self.constants = {name: value for name, value in graph.constants.items() if not isinstance(value, list)}
        self.shapes, self.dtypes = dict(graph.shapes), dict(graph.dtypes)
        self.elements: dict[str, list[str]] = {}
        self.rows: dict[str, tuple[str, int]] = {}
        self.packed: set[str] = set()
        self.names = {name for node in graph.nodes for name in (*node.reads, *node.outputs)}
        self.node_names = {node.name for node in graph.nodes}

    def visit(self, node: Node) -> None:
        """Replace `node` if it is on sequences whose elements are known, else keep it."""
        sequence = node.inputs[0] if node.inputs else ""
        resolve = _OPERATORS.get(node.op_type) if node.domain == "" else None
        known = sequence in self.elements or node.op_type in ("SequenceConstruct", "SequenceEmpty", "SplitToSequence")
        if resolve is not None and known:
            resolve(self, node)
        elif node.operator == "Identity" and known:
            self.elements[node.outputs[0]] = self.elements[sequence]
            if sequence in self.rows:
                self.rows[node.outputs[0]] = self.rows[sequence]
        else:
            for name in node.reads:
                self.pack(name)
            self.nodes.append(node)

    def pack(self, name: str) -> None:
        """Make the sequence `name` again from its elements, for a reader that needs it whole."""
        if name not in self.elements or name in self.packed:
            return
        self.packed.add(name)
        operator = "SequenceConstruct" if self.elements[name] else "SequenceEmpty"
        node_name = fresh(f"{operator}_{name}", self.node_names)
        self.nodes.append(Node(node_name, operator, tuple(self.elements[name]), (name,)))

    def constant(self, name: str, array: Any) -> str:
        """Note an array under a free name."""
        name = fresh(name, self.names)
        self.constants[name] = np.asarray(array)
        self.shapes[name], self.dtypes[name] = np.shape(array), np.asarray(array).dtype
        return name

    def emit(
        self,
        like: Node,
        op_type: str,
        inputs: tuple[str, ...],
        outputs: Mapping[str, tuple[int, ...]],
        **attributes: Any,
    ) -> None:
        """Add a node that stands for `like`; `outputs` is name -> shape, the dtype is that of the first input."""
        name = like.name if like.name not in {node.name for node in self.nodes} else fresh(like.name, self.node_names)
        self.nodes.append(
            replace(like, name=name, op_type=op_type, inputs=inputs, outputs=tuple(outputs), attributes=attributes)
        )
        for output, shape in outputs.items():
            self.shapes[output], self.dtypes[output] = shape, self.dtypes[inputs[0]]

    def value(self, node: Node, position: int) -> Array | None:
        """Return a constant input, None if it is absent."""
        name = node.inputs[position] if position < len(node.inputs) else ""
        return self.constants[name] if name else None

    def new(self, name: str) -> str:
        """Return a free value name."""
        return fresh(name, self.names)


def _construct(work: _Work, node: Node) -> None:
    work.elements[node.outputs[0]] = [name for name in node.inputs if name]


def _insert(work: _Work, node: Node) -> None:
    elements = list(work.elements[node.inputs[0]])
    position = work.value(node, 2)
    at = len(elements) if position is None else int(position)
    elements.insert(at + len(elements) if at < 0 else at, node.inputs[1])
    work.elements[node.outputs[0]] = elements


def _erase(work: _Work, node: Node) -> None:
    elements = list(work.elements[node.inputs[0]])
    position = work.value(node, 1)
    del elements[-1 if position is None else int(position)]
    work.elements[node.outputs[0]] = elements


def _at(work: _Work, node: Node) -> None:
    position = work.value(node, 1)
    assert position is not None
    element = work.elements[node.inputs[0]][int(position)]
    work.emit(node, "Identity", (element,), {node.outputs[0]: work.shapes[element]})


def _split(work: _Work, node: Node) -> None:
    data = node.inputs[0]
    shape = work.shapes[data]
    axis = int(node.attributes.get("axis", 0)) % len(shape)
    given = work.value(node, 1)
    if given is None:
        sizes = [1] * shape[axis]
    elif given.ndim:
        sizes = [int(size) for size in given]
    else:
        size = int(given)
        sizes = [min(size, shape[axis] - start) for start in range(0, shape[axis], size)]
    parts = {
        work.new(f"{node.outputs[0]}/{i}"): (*shape[:axis], size, *shape[axis + 1 :]) for i, size in enumerate(sizes)
    }
    work.emit(
        node, "Split", (data, work.constant(f"{node.outputs[0]}/sizes", np.array(sizes, np.int64))), parts, axis=axis
    )
    elements = list(parts)
    if given is None and not node.attributes.get("keepdims", 1):
        elements = [_on_axis(work, node, "Squeeze", part, axis) for part in parts]
        work.rows[node.outputs[0]] = (data, axis)
    work.elements[node.outputs[0]] = elements


def _on_axis(work: _Work, node: Node, op_type: str, name: str, axis: int) -> str:
    """Squeeze or unsqueeze `name` at `axis`."""
    shape = work.shapes[name]
    output = work.new(f"{name}/{op_type.lower()}")
    new = (*shape[:axis], *((1, *shape[axis:]) if op_type == "Unsqueeze" else shape[axis + 1 :]))
    work.emit(node, op_type, (name, work.constant(f"{output}/axes", np.array([axis], np.int64))), {output: new})
    return output


def _concat(work: _Work, node: Node) -> None:
    elements = work.elements[node.inputs[0]]
    axis = int(node.attributes["axis"])
    rank = len(work.shapes[elements[0]])
    if node.inputs[0] in work.rows:
        _join_rows(work, node, axis, bool(node.attributes.get("new_axis", 0)))
        return
    if node.attributes.get("new_axis", 0):
        axis = axis % (rank + 1)
        elements = [_on_axis(work, node, "Unsqueeze", name, axis) for name in elements]
    axis %= len(work.shapes[elements[0]])
    shape = list(work.shapes[elements[0]])
    shape[axis] = sum(work.shapes[name][axis] for name in elements)
    work.emit(node, "Concat", tuple(elements), {node.outputs[0]: tuple(shape)}, axis=axis)


def _join_rows(work: _Work, node: Node, axis: int, new_axis: bool) -> None:
    """Put the rows of one tensor together again: its axis moves, and merges with another unless it is a new one."""
    data, at = work.rows[node.inputs[0]]
    shape = work.shapes[data]
    axis %= len(shape) if new_axis else len(shape) - 1
    order = [k for k in range(len(shape)) if k != at]
    order.insert(axis, at)
    moved = node.outputs[0] if new_axis else work.new(f"{node.outputs[0]}/moved")
    new = [shape[k] for k in order]
    work.emit(node, "Transpose", (data,), {moved: tuple(new)}, perm=order)
    if not new_axis:
        new[axis : axis + 2] = [new[axis] * new[axis + 1]]
        sizes = work.constant(f"{node.outputs[0]}/shape", np.array(new, np.int64))
        work.emit(node, "Reshape", (moved, sizes), {node.outputs[0]: tuple(new)})


_OPERATORS: dict[str, Callable[[_Work, Node], None]] = {
    "ConcatFromSequence": _concat,
    "SequenceAt": _at,
    "SequenceConstruct": _construct,
    "SequenceEmpty": _construct,
    "SequenceErase": _erase,
    "SequenceInsert": _insert,
    "SplitToSequence": _split,
}
