"""Lower steps for one example to ONNX nodes over the batch axes.

In memory a value is ``[K, N, B, *shape]`` with the axes that it lacks left out. `Lowering.step` emits the ONNX nodes of
one step. Which way an operator takes its batch is the table `BATCHING`; an operator that is not in it is run row by row
in a Scan, which is slow and correct.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from deepshap_ir.engine.inference import onnx_node
from deepshap_ir.engine.value import INTERNAL, Step, Value, union
from deepshap_ir.graph import Array
from deepshap_ir.importing.subgraphs import captured

BatchingRule = Callable[["Lowering", Step], None]
BATCHING: dict[str, BatchingRule] = {}


def batching(*op_types: str) -> Callable[[BatchingRule], BatchingRule]:
    """Register how operators, ``"OpType"`` or ``"domain::OpType"``, take their batch."""

    def register(rule: BatchingRule) -> BatchingRule:
        BATCHING.update(dict.fromkeys(op_types, rule))
        return rule

    return register


class Lowering:
    """ONNX nodes, initializers and names of one program."""

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, Array] = {}
        self.dimensions: set[str] = set()
        self._names: dict[tuple[object, ...], str] = {}
        self._count = 0

    def step(self, step: Step) -> None:
        """Emit one step."""
        rule = BATCHING.get(f"{step.domain}::{step.op_type}" if step.domain else step.op_type)
        if not step.axes and step.domain != INTERNAL:
            self.plain(step)
        elif rule is not None:
            rule(self, step)
        else:
            row_by_row(self, step)

    def plain(self, step: Step, inputs: Sequence[str] | None = None, **changes: object) -> None:
        """Emit `step` itself, on other input names or with changed attributes."""
        names = [self.name(v) for v in step.inputs] if inputs is None else inputs
        attributes = {**step.attributes, **changes}
        self.nodes.append(onnx_node(step.op_type, step.domain, names, [v.name for v in step.outputs], attributes))

    def name(self, value: Value | None) -> str:
        """The tensor that holds `value`; an initializer where it is a constant."""
        if value is None:
            return ""
        if value.data is not None:
            self.initializers[value.name] = value.data
        return value.name

    def node(self, op_type: str, inputs: Sequence[str], output: str | None = None, **attributes: object) -> str:
        """Emit a node of the standard domain; equal nodes are emitted once."""
        key = (op_type, *inputs, repr(attributes))
        if output is None and key in self._names:
            return self._names[key]
        result = output or self._fresh()
        self.nodes.append(onnx_node(op_type, "", inputs, [result], attributes))
        if output is None:
            self._names[key] = result
        return result

    def know(self, op_type: str, inputs: Sequence[str], output: str, **attributes: object) -> None:
        """Let a node that is asked for later be the tensor `output`, which holds the same."""
        self._names[(op_type, *inputs, repr(attributes))] = output

    def alive(self, outputs: Sequence[str]) -> list[onnx.NodeProto]:
        """The nodes that `outputs` need."""
        wanted, kept = set(outputs), []
        for node in reversed(self.nodes):
            if not wanted.isdisjoint(node.output):
                kept.append(node)
                wanted.update((*node.input, *captured(node)))
        return kept[::-1]

    def integers(self, values: Sequence[int]) -> str:
        """A constant int64 vector."""
        name = "ints_" + "_".join(str(v).replace("-", "m") for v in values)
        self.initializers[name] = np.array(values, np.int64)
        return name

    def full_shape(self, axes: Sequence[str], shape: Sequence[int]) -> str:
        """The shape ``[sizes of the axes, *shape]`` as an int64 vector."""
        if not axes:
            return self.integers(shape)
        self.dimensions.update(axes)
        return self.node("Concat", [*(dimension(a) for a in axes), self.integers(shape)], axis=0)

    def reshape(self, name: str, axes: Sequence[str], shape: Sequence[int], output: str | None = None) -> str:
        """Reshape the tensor `name` to ``[*axes, *shape]``."""
        if 0 in shape:
            return self.node("Reshape", [name, self.full_shape(axes, shape)], output, allowzero=1)
        if len(axes) == 1:
            return self.node("Reshape", [name, self.integers([-1, *shape])], output)
        return self.node("Reshape", [name, self.full_shape(axes, shape)], output)

    def align(self, value: Value, axes: Sequence[str], rank: int, leading: bool = False) -> str:
        """`value` with length-1 dimensions for missing `axes` and up to `rank`, ready to broadcast.

        Absent axes in front of the first one are left out, as broadcasting adds them, unless `leading`.
        """
        name = self.name(value)
        if not value.axes and not leading:
            return name
        wanted = list(axes) if leading else list(axes)[list(axes).index(value.axes[0]) :]
        positions = [k for k, axis in enumerate(wanted) if axis not in value.axes]
        positions += range(len(wanted), len(wanted) + rank - value.rank)
        if not positions:
            return name
        return self.node("Unsqueeze", [name, self.integers(positions)])

    def expand(self, value: Value, axes: Sequence[str], shape: Sequence[int] | None = None) -> str:
        """`value` repeated over all of `axes` (and broadcast to `shape`)."""
        shape = value.shape if shape is None else shape
        if value.axes == tuple(axes) and value.shape == tuple(shape):
            return self.name(value)
        aligned = self.align(value, axes, len(shape), leading=True)
        return self.node("Expand", [aligned, self.full_shape(axes, shape)])

    def merged(self, value: Value, axes: Sequence[str]) -> str:
        """`value` with all of `axes` merged into its first dimension."""
        name = self.expand(value, axes)
        return self.node("Reshape", [name, self.integers([-1, *value.shape[1:]])])

    def _fresh(self) -> str:
        self._count += 1
        return f"{self.prefix}t{self._count}"


def dimension(axis: str) -> str:
    """The program input that holds the length of a batch axis, int64 ``[1]``."""
    return f"size_of_{axis}"


def negative(axis: int, rank: int) -> int:
    """`axis` counted from the end."""
    return axis - rank if axis >= 0 else axis


def constant(step: Step, position: int) -> Array | None:
    """The constant operand at `position`, None where it is absent."""
    value = step.inputs[position] if position < len(step.inputs) else None
    if value is None:
        return None
    if value.data is None:
        raise ValueError(f"{step.op_type}: operand {position} must be a constant")
    return value.data


def operand(step: Step, position: int = 0) -> Value:
    """The operand at `position`, which must be there."""
    value = step.inputs[position]
    if value is None:
        raise ValueError(f"{step.op_type}: operand {position} is missing")
    return value


def only_first(step: Step) -> bool:
    """Whether no operand but the first varies over a batch axis."""
    return not any(v is not None and v.axes for v in step.inputs[1:])


def row_by_row(low: Lowering, step: Step) -> None:
    """Run the operator on one row at a time in a Scan over the merged axes."""
    axes = step.axes
    varying = [v for v in step.inputs if v is not None and v.axes]
    flat = [
        low.node("Reshape", [low.expand(v, axes), low.integers([-1, *v.shape])])
        if len(axes) != 1 or v.axes != axes
        else low.name(v)
        for v in dict.fromkeys(varying)
    ]
    fixed = list(dict.fromkeys(v for v in step.inputs if v is not None and not v.axes and v.data is None))
    constants = {v.name: v.data for v in step.inputs if v is not None and v.data is not None}
    present = [v for v in step.outputs if v.name]
    first = present[0].name
    rows = {v: f"{first}_row{k}" for k, v in enumerate([*fixed, *dict.fromkeys(varying)])}
    states = [f"{rows[v]}_state" for v in fixed]
    inside = [rows.get(v, v.name) if v is not None else "" for v in step.inputs]
    results = [f"{v.name}_one" for v in present]
    named = [f"{v.name}_one" if v.name else "" for v in step.outputs]
    body = helper.make_graph(
        [
            onnx_node(step.op_type, step.domain, inside, named, step.attributes),
            *(helper.make_node("Identity", [rows[v]], [state]) for v, state in zip(fixed, states, strict=True)),
        ],
        "one_row",
        [_value_info(name, v) for v, name in rows.items()],
        [_value_info(name, v) for v, name in zip([*fixed, *present], [*states, *results], strict=True)],
        # constants are copied in and fixed operands passed as states: onnx.reference sees no outer scope in a Scan
        [numpy_helper.from_array(data, name) for name, data in constants.items()],
    )
    stacked = [f"{v.name}_rows" for v in present]
    inputs = [*(v.name for v in fixed), *flat]
    outputs = [*(f"{state}_last" for state in states), *stacked]
    low.nodes.append(helper.make_node("Scan", inputs, outputs, num_scan_inputs=len(flat), body=body))
    for name, value in zip(stacked, present, strict=True):
        low.reshape(name, axes, value.shape, value.name)


def _value_info(name: str, value: Value) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)


__all__ = ["BATCHING", "Lowering", "batching", "dimension", "union"]
