"""Write ONNX operators for one example; remember over which batch axes each value varies.

A rule sees values of one example: ``x.shape`` is ``(1, C, H, W)`` whatever the number of samples, references and
outputs. The emitter records each operator as a `Step` and gives its results the union of the operands' *axes*, a subset
of ``output < sample < background``. `deepshap_ir.engine.batching` turns steps into ONNX nodes over arrays
``[K, N, B, *shape]``, with the absent axes left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, cast, overload

import numpy as np
from numpy.typing import ArrayLike
from onnx import helper

from deepshap_ir.engine.calls import check_call
from deepshap_ir.engine.inference import BROADCASTING, fold, infer
from deepshap_ir.engine.value import AXES, INTERNAL, OUTPUT, Operand, Operator, Step, Type, Value, union
from deepshap_ir.errors import RuleError
from deepshap_ir.graph import Graph, Node

if TYPE_CHECKING:
    from deepshap_ir.engine.recurrence import LoopRun


class Emitter:
    """Records steps. Every ONNX operator is a method: ``op.ReduceSum(x, [-1], keepdims=0)``.

    Positional arguments are the operator's inputs: a `Value`, an array, a number, or None for an absent optional
    input. Numbers and floating-point arrays take the dtype of the values beside them; lists of integers become int64.
    Keyword arguments are attributes. ``outputs=n`` asks for the first n outputs and returns a tuple. An operator
    outside the standard domain is ``op.call("com.microsoft::Gelu", x)``.

    An operator whose operands are all constants is computed at once, and equal operators are emitted once.
    """

    def __init__(self, opsets: Mapping[str, int], dtype: np.dtype[Any] | None = None) -> None:
        self.opsets = dict(opsets)
        self.dtype = np.dtype(np.float32) if dtype is None else dtype
        self.steps: list[Step] = []
        self.by_output: dict[str, Step] = {}
        self.memory: dict[Any, Any] = {}
        self._known: dict[Any, tuple[Sequence[Value | None], Mapping[str, Any], tuple[Value, ...]]] = {}
        self._constants: dict[Any, Value] = {}
        self._count = 0

    def __getattr__(self, op_type: str) -> Operator:
        if not op_type[0].isupper():
            raise AttributeError(f"{op_type!r}: operators are spelled as in ONNX, such as op.Relu")
        return cast(Operator, partial(self.call, op_type))

    @overload
    def call(self, operator: str, *inputs: Operand | None, outputs: None = None, **attributes: Any) -> Value: ...

    @overload
    def call(self, operator: str, *inputs: Operand | None, outputs: int, **attributes: Any) -> tuple[Value, ...]: ...

    def call(
        self, operator: str, *inputs: Operand | None, outputs: int | None = None, **attributes: Any
    ) -> Value | tuple[Value, ...]:
        """Emit ``"OpType"`` or ``"domain::OpType"``; a `Value`, or a tuple of them where ``outputs=n`` is given."""
        domain, _, op_type = operator.rpartition("::")
        values = self._operands(inputs)
        check_call(op_type, domain, self.opsets[""], self, values, attributes)
        results = self.emit(op_type, domain, values, attributes, outputs or 1)
        return results[0] if outputs is None else results

    def constant(self, array: ArrayLike, dtype: Any = None) -> Value:
        """A constant. Arrays are kept by reference, so do not change them afterwards."""
        data = np.asarray(array, dtype=dtype)
        key = (data.dtype.str, data.shape, data.tobytes() if data.nbytes <= 4096 else id(data))
        if key not in self._constants:
            self._constants[key] = Value(self, self._name("c"), data.shape, data.dtype, (), data)
        return self._constants[key]

    def input(self, name: str, shape: Sequence[int], dtype: Any, axes: Sequence[str]) -> Value:
        """A value that is fed when the program runs."""
        return Value(self, name, tuple(shape), np.dtype(dtype), tuple(axis for axis in AXES if axis in axes))

    def placeholder(self, shape: Sequence[int], dtype: Any, axes: Sequence[str]) -> Value:
        """A value that no step makes yet."""
        return self.input(self._name("v"), shape, dtype, axes)

    @contextmanager
    def nested(self) -> Iterator[list[Step]]:
        """Collect the steps that are emitted inside, for the body of a loop; they may read values from outside."""
        outside, known, memory = self.steps, self._known, self.memory
        self.steps, self._known, self.memory = [], dict(known), dict(memory)
        try:
            yield self.steps
        finally:
            self.steps, self._known, self.memory = outside, known, memory

    def scan(
        self,
        body: Callable[[list[Value], list[Value]], tuple[Sequence[Value], Sequence[Value]]],
        states: Sequence[Value],
        sequences: Sequence[Value],
        reverse: bool = False,
    ) -> tuple[list[Value], list[Value]]:
        """Emit a loop over sequences ``[T, *shape]``; see `deepshap_ir.engine.recurrence.scan`."""
        from deepshap_ir.engine.recurrence import scan

        return scan(self, body, states, sequences, reverse)

    def loop(self, node: Node, inputs: Sequence[Value | None]) -> LoopRun:
        """Emit a loop node, and give what is known of its elements; see `deepshap_ir.engine.recurrence.LoopRun`."""
        from deepshap_ir.engine.recurrence import emit_node

        return emit_node(self, node, inputs)

    def remember(
        self, node: Node, inputs: Sequence[Value | None], results: Sequence[Value]
    ) -> tuple[Value | None, ...]:
        """Let `node` on `inputs` be `results` from here on, inside `nested` until its end.

        What it was before where it was remembered already.
        """
        known: tuple[Value | None, ...] = self.memory.setdefault(_node_key(node, inputs), tuple(results))
        return known

    def record(self, step: Step) -> None:
        """Record a step that is made already."""
        self.steps.append(step)
        self.by_output.update((value.name, step) for value in step.outputs)

    def cast(self, value: Value, dtype: Any) -> Value:
        """`value` as `dtype`; itself where it has it already."""
        if value.dtype == np.dtype(dtype):
            return value
        return self.call("Cast", value, to=int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype))))

    def zeros(self, shape: Sequence[int], dtype: Any = None) -> Value:
        """A constant of zeros."""
        return self.constant(np.zeros(tuple(shape), dtype or self.dtype))

    def sum_over(self, value: Value, axis: str, reduction: str = "ReduceSum") -> Value:
        """The sum (or sum of squares, "ReduceSumSquare", or magnitudes, "ReduceL1") over a batch axis of `value`."""
        axes = tuple(a for a in value.axes if a != axis)
        attributes = {"axis": axis, "reduction": reduction}
        return self._record("SumOver", INTERNAL, (value,), [(value.shape, value.dtype)], attributes, axes)[0]

    def emit(
        self,
        op_type: str,
        domain: str,
        inputs: Sequence[Value | None],
        attributes: Mapping[str, Any],
        outputs: int = 1,
        types: Sequence[Type | None] | None = None,
    ) -> tuple[Value, ...]:
        """Record one operator on values; `types` of its outputs replace inference where given.

        An output without a type is left out: its value has no name, and nothing may read it.
        """
        if not domain and op_type in BROADCASTING and op_type != "PRelu":
            inputs = self._unexpanded(inputs)
        if not domain and op_type == "Mul":
            inputs = self._regrouped(inputs)
        if not domain and op_type == "Pow":
            inputs = self._with_exponent(*inputs)
        key = (op_type, domain, tuple(id(v) for v in inputs), _attribute_key(attributes), outputs)
        if key not in self._known:
            folded = fold(self.opsets, op_type, domain, inputs, attributes, outputs)
            if folded is not None:
                results = tuple(found if isinstance(found, Value) else self.constant(found) for found in folded)
            else:
                if types is None:
                    types = infer(self.opsets, op_type, domain, inputs, attributes, outputs)
                results = self._record(op_type, domain, tuple(inputs), types, attributes, union(*inputs))
            # with all that has its id in the key: an id is free again once its object is gone
            self._known[key] = (inputs, attributes, results)
        return self._known[key][-1]

    def node(self, node: Node, inputs: Sequence[Value | None], graph: Graph) -> tuple[Value | None, ...]:
        """Emit a node of `graph` on `inputs`, one result per node output (None where the node leaves it out).

        A node with a `body` is emitted as its body, once or as a loop.
        """
        remembered: tuple[Value | None, ...] | None = self.memory.get(_node_key(node, inputs))
        if remembered is not None:
            return remembered
        body = node.attributes.get("body")
        if isinstance(body, Graph) and node.op_type == "Scan":
            return tuple(self.loop(node, inputs).outputs)
        if isinstance(body, Graph):
            return tuple(v if n else None for n, v in zip(node.outputs, self.graph(body, inputs), strict=True))
        present = [k for k, n in enumerate(node.outputs) if n]
        used = node.outputs[: present[-1] + 1] if present else ()
        types = [(graph.shapes[n], graph.dtypes[n]) if n else None for n in used]
        results = self.emit(node.op_type, node.domain, inputs, node.attributes, len(used), types)
        unused = (None,) * (len(node.outputs) - len(used))
        return (*(v if n else None for n, v in zip(used, results, strict=True)), *unused)

    def graph(self, graph: Graph, inputs: Sequence[Value | None]) -> list[Value]:
        """Emit all of `graph` on `inputs`; its outputs."""
        found = self.values(graph, inputs)
        return [found[n] for n in graph.outputs]

    def values(self, graph: Graph, inputs: Sequence[Value | None]) -> dict[str, Value]:
        """Emit all of `graph` on `inputs`; every value by name."""
        known = {n: v for n, v in zip(graph.inputs, inputs, strict=True) if v is not None}
        known |= {name: self.constant(data) for name, data in graph.constants.items()}
        for node in graph.nodes:
            results = self.node(node, [known[n] if n else None for n in node.inputs], graph)
            known |= {n: v for n, v in zip(node.outputs, results, strict=True) if n and v is not None}
        return known

    def _with_exponent(self, base: Value | None, exponent: Value | None) -> list[Value | None]:
        """The operands of a power, the exponent in a dtype for which onnxruntime has a kernel."""
        if exponent is not None and exponent.dtype.kind in "iu" and exponent.dtype not in (np.int32, np.int64):
            wider = {np.dtype(np.uint32): np.int64, np.dtype(np.uint64): np.float64}
            exponent = self.cast(exponent, wider.get(exponent.dtype, np.int32))
        return [base, exponent]

    def _unexpanded(self, inputs: Sequence[Value | None]) -> list[Value | None]:
        """Operands as they were before an Expand that the operator's own broadcasting makes superfluous."""
        values = list(inputs)
        shapes = [v.shape if v is not None else () for v in values]
        for k, value in enumerate(values):
            step = self.by_output.get(value.name) if value is not None else None
            source = step.inputs[0] if step is not None and step.op_type == "Expand" else None
            if source is not None:
                others = [*shapes[:k], source.shape, *shapes[k + 1 :]]
                try:
                    same = np.broadcast_shapes(*others) == np.broadcast_shapes(*shapes)
                except ValueError:  # the operator does not fit its operands; _infer says so
                    same = False
                if same:
                    values[k], shapes = source, others
        return values

    def _regrouped(self, inputs: Sequence[Value | None]) -> Sequence[Value | None]:
        """``(m q) b`` as ``m (q b)`` where only `m` varies over the outputs, so that ``q b`` is computed once."""
        for product, b in (inputs, inputs[::-1]):
            if product is None or b is None or OUTPUT not in product.axes or OUTPUT in b.axes or not b.axes:
                continue
            step = self.by_output.get(product.name)
            if step is None or step.op_type != "Mul":
                continue
            for m, q in (step.inputs, step.inputs[::-1]):
                if m is not None and q is not None and OUTPUT in m.axes and OUTPUT not in q.axes:
                    return [m, self.Mul(q, b)]
        return inputs

    def _name(self, prefix: str) -> str:
        self._count += 1
        return f"{prefix}{self._count}"

    def _operands(self, inputs: Sequence[Operand | None]) -> list[Value | None]:
        """Inputs as values; numbers and floating-point arrays in the dtype of the first value of their kind."""
        floats = next((v.dtype for v in inputs if isinstance(v, Value) and v.is_float), None)
        others = next((v.dtype for v in inputs if isinstance(v, Value)), None)
        values: list[Value | None] = []
        for operand in inputs:
            if operand is None or isinstance(operand, Value):
                values.append(operand)
                continue
            listed = isinstance(operand, list | tuple)
            if isinstance(operand, list | tuple) and any(v is None or isinstance(v, Value) for v in operand):
                raise RuleError("an operand is a list of values, not one value; m has an entry per output: m[0]")
            data = np.asarray(operand)
            if listed and (data.size == 0 or data.dtype.kind in "iu"):
                data = data.astype(np.int64)
            elif data.dtype.kind == "f":
                data = data.astype(floats or self.dtype, copy=False)
            elif isinstance(operand, int) and not isinstance(operand, bool):
                data = data.astype(floats or others or self.dtype)
            values.append(self.constant(data))
        return values

    def _record(
        self,
        op_type: str,
        domain: str,
        inputs: tuple[Value | None, ...],
        types: Sequence[Type | None],
        attributes: Mapping[str, Any],
        axes: tuple[str, ...],
    ) -> tuple[Value, ...]:
        named = [(self._name("v"), *t) if t else ("", (), self.dtype) for t in types]
        results = tuple(Value(self, name, shape, dtype, axes) for name, shape, dtype in named)
        self.record(Step(op_type, domain, inputs, results, attributes))
        return results


def _node_key(node: Node, inputs: Sequence[Value | None]) -> tuple[Any, ...]:
    return "node", id(node), tuple(map(id, inputs))


def _attribute_key(attributes: Mapping[str, Any]) -> Any:
    def key(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return (value.dtype.str, value.shape, value.tobytes())
        if isinstance(value, list | tuple):
            return tuple(key(v) for v in value)
        if isinstance(value, int | float | str | bytes | bool) or value is None:
            return value
        return id(value)

    return tuple(sorted((name, key(value)) for name, value in attributes.items()))


def as_graph(op: Emitter, inputs: Sequence[Value], results: Sequence[Value]) -> Graph:
    """The steps that `op` recorded, as the graph of a node that has a program."""
    nodes = [
        Node(
            f"{step.op_type}_{k}",
            step.op_type,
            tuple(v.name if v is not None else "" for v in step.inputs),
            tuple(v.name for v in step.outputs),
            step.attributes,
            step.domain,
            op.opsets[""],
        )
        for k, step in enumerate(op.steps)
    ]
    every = {v.name: v for step in op.steps for v in (*step.inputs, *step.outputs) if v is not None}
    every |= {v.name: v for v in (*inputs, *results)}
    return Graph(
        tuple(v.name for v in inputs),
        tuple(v.name for v in results),
        tuple(nodes),
        {n: v.data for n, v in every.items() if v.data is not None},
        {n: v.shape for n, v in every.items()},
        {n: v.dtype for n, v in every.items()},
        {},
        op.opsets,
    )
