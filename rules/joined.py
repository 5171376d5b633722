"""What several operators of `ai.onnx.ml` share: one node that has a program and a rule of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from deepshap_ir.extend import Emitter, Graph, Node, Value


def joined(
    op: Emitter, name: str, inputs: Sequence[Value], body: Callable[[list[Value]], list[Value]], **attributes: Any
) -> Value:
    """Emit what `body` makes of `inputs` as one node ``deepshap_ir::name``, for a rule of its own; its first output."""
    inner = Emitter(op.opsets, op.dtype)
    fed = [inner.input(f"x{k}", v.shape, v.dtype, ["sample"]) for k, v in enumerate(inputs)]
    results = body(fed)
    types = [(v.shape, v.dtype) for v in results]
    given = {"body": _as_graph(inner, fed, results), **attributes}
    return op.emit(name, "deepshap_ir", inputs, given, len(results), types)[0]


def _as_graph(op: Emitter, inputs: Sequence[Value], results: Sequence[Value]) -> Graph:
    """The recorded steps as a graph."""
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
