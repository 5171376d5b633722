"""What one operator makes of its operands for one example: shapes and dtypes, and numbers where they are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from deepshap_ir.engine.value import Type, Value
from deepshap_ir.errors import RuleError
from deepshap_ir.graph import Array
from deepshap_ir.reference.operators import REPAIRED

UNARY = frozenset(
    [
        "Abs",
        "Acos",
        "Acosh",
        "Asin",
        "Asinh",
        "Atan",
        "Atanh",
        "BitwiseNot",
        "Cast",
        "Ceil",
        "Celu",
        "Clip",
        "Cos",
        "Cosh",
        "Dropout",
        "Elu",
        "Erf",
        "Exp",
        "Floor",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "Identity",
        "IsInf",
        "IsNaN",
        "LeakyRelu",
        "Log",
        "Mish",
        "Neg",
        "Not",
        "Reciprocal",
        "Relu",
        "Round",
        "Selu",
        "Shrink",
        "Sigmoid",
        "Sign",
        "Sin",
        "Sinh",
        "Softplus",
        "Softsign",
        "Sqrt",
        "Swish",
        "Tan",
        "Tanh",
        "ThresholdedRelu",
    ]
)
BROADCASTING = frozenset(
    [
        "Add",
        "And",
        "BitShift",
        "BitwiseAnd",
        "BitwiseOr",
        "BitwiseXor",
        "Div",
        "Equal",
        "Greater",
        "GreaterOrEqual",
        "Less",
        "LessOrEqual",
        "Max",
        "Mean",
        "Min",
        "Mod",
        "Mul",
        "Or",
        "PRelu",
        "Pow",
        "Sub",
        "Sum",
        "Where",
        "Xor",
    ]
)
BOOLEAN = frozenset(
    ["And", "Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual", "Not", "Or", "Xor"]
)

FOLDING_LIMIT = 1 << 22
"""Constants of more elements than this are left to the runtime to fold."""


def fold(
    opsets: Mapping[str, int],
    op_type: str,
    domain: str,
    inputs: Sequence[Value | None],
    attributes: Mapping[str, Any],
    outputs: int,
) -> list[Array | Value] | None:
    """The results where only constants or only shapes determine them, or where one is an operand; else None."""
    if domain:
        return None
    if op_type == "Shape" and inputs[0] is not None:
        shape = inputs[0].shape[attributes.get("start", 0) : attributes.get("end")]
        return [np.array(shape, np.int64)]
    if op_type == "Size" and inputs[0] is not None:
        return [np.array(inputs[0].size, np.int64)]
    x = inputs[0] if inputs else None
    if x is not None and (op_type == "Identity" or (op_type == "Cast" and x.dtype == _cast_target(attributes))):
        return [x]
    if op_type == "Mul":
        for value, other in (inputs, inputs[::-1]):
            if value is not None and other is not None and _changes_nothing(other, value.shape):
                return [value]
    if any(v is not None and (v.data is None or v.data.size > FOLDING_LIMIT) for v in inputs):
        return None
    names = [f"i{k}" if v is not None else "" for k, v in enumerate(inputs)]
    results = [f"o{k}" for k in range(outputs)]
    node = onnx_node(op_type, domain, names, results, attributes)
    graph = helper.make_graph(
        [node],
        "constant",
        [helper.make_value_info(n, _type_of(v)) for n, v in zip(names, inputs, strict=True) if v is not None],
        [helper.make_empty_tensor_value_info(n) for n in results],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opsets[""])], ir_version=10)
    feeds = {n: v.data for n, v in zip(names, inputs, strict=True) if v is not None}
    with np.errstate(all="ignore"):
        arrays = ReferenceEvaluator(model, new_ops=REPAIRED).run(None, feeds)
    if any(np.asarray(array).size > FOLDING_LIMIT for array in arrays):
        return None
    return [np.asarray(array) for array in arrays]


def infer(
    opsets: Mapping[str, int],
    op_type: str,
    domain: str,
    inputs: Sequence[Value | None],
    attributes: Mapping[str, Any],
    outputs: int,
) -> list[Type]:
    """Shape and dtype of each output, for one example."""
    first = inputs[0]
    if not domain and op_type in UNARY and outputs == 1 and first is not None:
        dtype = np.dtype(bool) if op_type in BOOLEAN else first.dtype
        if op_type == "Cast":
            dtype = _cast_target(attributes)
        return [(first.shape, dtype)]
    if not domain and op_type in BROADCASTING:
        present = [v for v in inputs if v is not None]
        try:
            shape = np.broadcast_shapes(*(v.shape for v in present))
        except ValueError:
            raise RuleError(f"{op_type} cannot broadcast {[v.shape for v in present]}") from None
        dtype = np.dtype(bool) if op_type in BOOLEAN else present[-1 if op_type == "Where" else 0].dtype
        _check_dtypes(op_type, present[1:] if op_type == "Where" else present)
        return [(shape, dtype)]
    if domain or op_type in ("If", "Loop", "Scan"):
        raise RuleError(f"{domain}::{op_type}: the shapes of its outputs are not known here; pass types=")
    names = [f"i{k}" if v is not None else "" for k, v in enumerate(inputs)]
    results = [f"o{k}" for k in range(outputs)]
    node = onnx_node(op_type, domain, names, results, attributes)
    types = {n: _type_of(v) for n, v in zip(names, inputs, strict=True) if v is not None}
    data = {
        n: numpy_helper.from_array(v.data)
        for n, v in zip(names, inputs, strict=True)
        if v is not None and v.data is not None and v.data.size <= 4096
    }
    shapes = [v.shape if v is not None else None for v in inputs]
    try:
        schema = onnx.defs.get_schema(op_type, opsets[""], "")
        found = onnx.shape_inference.infer_node_outputs(
            schema, node, types, data, opset_imports=[helper.make_opsetid("", opsets[""])], ir_version=10
        )
    except Exception as error:
        raise RuleError(f"{op_type} does not fit operands of shapes {shapes}: {error}") from error
    inferred = []
    for name in results:
        tensor = found[name].tensor_type if name in found else None
        if tensor is None or not tensor.HasField("shape") or any(not d.HasField("dim_value") for d in tensor.shape.dim):
            raise RuleError(f"{op_type} on shapes {shapes}: the shape of output {name[1:]} depends on data")
        shape = tuple(d.dim_value for d in tensor.shape.dim)
        inferred.append((shape, helper.tensor_dtype_to_np_dtype(tensor.elem_type)))
    return inferred


def onnx_node(
    op_type: str,
    domain: str,
    inputs: Sequence[str],
    outputs: Sequence[str],
    attributes: Mapping[str, Any],
    name: str = "",
) -> onnx.NodeProto:
    """A node with Python attributes as they are kept in `Node` and `Step`; a `Graph` must be lowered before."""
    node = helper.make_node(op_type, list(inputs), list(outputs), name=name, domain=domain)
    for key, value in attributes.items():
        if value is None:
            continue
        if isinstance(value, np.ndarray):
            node.attribute.append(helper.make_attribute(key, numpy_helper.from_array(value)))
        elif isinstance(value, list | tuple) and not value:
            node.attribute.append(helper.make_attribute(key, [], attr_type=onnx.AttributeProto.INTS))
        else:
            node.attribute.append(helper.make_attribute(key, value))
    return node


def _cast_target(attributes: Mapping[str, Any]) -> np.dtype[Any]:
    return helper.tensor_dtype_to_np_dtype(attributes["to"])


def _changes_nothing(factor: Value, shape: tuple[int, ...]) -> bool:
    """Whether `factor` is a constant of ones that does not broadcast `shape`."""
    data = factor.data
    if data is None or data.ndim > len(shape) or not (data == 1).all():
        return False
    return all(n in (1, size) for n, size in zip(data.shape[::-1], shape[::-1], strict=False))


def _type_of(value: Value) -> onnx.TypeProto:
    return helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)


def _check_dtypes(op_type: str, values: Sequence[Value]) -> None:
    dtypes = {v.dtype for v in values}
    if len(dtypes) > 1 and op_type != "Pow" and op_type != "BitShift":
        raise RuleError(f"{op_type} of different dtypes {sorted(d.name for d in dtypes)}: cast first (op.cast)")
