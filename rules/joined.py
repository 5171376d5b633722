"""What several operators of `ai.onnx.ml` share: one node that has a program and a rule of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from deepshap_ir.extend import Emitter, Value, as_graph


def joined(
    op: Emitter, name: str, inputs: Sequence[Value], body: Callable[[list[Value]], list[Value]], **attributes: Any
) -> Value:
    """Emit what `body` makes of `inputs` as one node ``deepshap_ir::name``, for a rule of its own; its first output."""
    inner = Emitter(op.opsets, op.dtype)
    fed = [inner.input(f"x{k}", v.shape, v.dtype, ["sample"]) for k, v in enumerate(inputs)]
    results = body(fed)
    types = [(v.shape, v.dtype) for v in results]
    given = {"body": as_graph(inner, fed, results), **attributes}
    return op.emit(name, "deepshap_ir", inputs, given, len(results), types)[0]
