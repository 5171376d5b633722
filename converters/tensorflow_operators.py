"""TensorFlow operators that tf2onnx lacks or has wrong."""

from __future__ import annotations

from typing import Any

import numpy as np

from deepshap_ir.converters.tensorflow_graph import MARK, MARKING


def handlers() -> dict[str, tuple[Any, list[Any]]]:
    """Return them as ``tf2onnx.convert.from_graph_def`` takes them."""
    return {name: (handler, []) for name, handler in OPERATORS.items()}


def marking(context: Any, node: Any, name: str, args: Any) -> Any:
    """Keep the mark, in a domain of its own."""
    node.domain = MARK
    node.type = "Mark"
    for attribute in list(node.attr):
        del node.attr[attribute]
    return node


def erfc(context: Any, node: Any, name: str, args: Any) -> Any:
    """``1 - Erf(x)``: tf2onnx writes an operator that ONNX does not have."""
    return _with_one(context, node, "Erf", one_first=True)


def expm1(context: Any, node: Any, name: str, args: Any) -> Any:
    """``Exp(x) - 1``."""
    return _with_one(context, node, "Exp", one_first=False)


def _with_one(context: Any, node: Any, function: str, one_first: bool) -> Any:
    """Write a function of one number and its difference from 1."""
    from onnx import helper

    dtype, shape, outputs = context.get_dtype(node.output[0]), context.get_shape(node.output[0]), node.output
    x = node.input[0]
    context.remove_node(node.name)
    made = context.make_node(function, [x], dtypes=[dtype], shapes=[shape]).output[0]
    one = context.make_const(f"{node.name}_one", np.ones((), helper.tensor_dtype_to_np_dtype(dtype))).output[0]
    operands = [one, made] if one_first else [made, one]
    return context.make_node("Sub", operands, name=node.name, outputs=outputs, dtypes=[dtype], shapes=[shape])


def log1p(context: Any, node: Any, name: str, args: Any) -> Any:
    """``Log(x + 1)``."""
    from onnx import helper

    dtype, shape, outputs = context.get_dtype(node.output[0]), context.get_shape(node.output[0]), node.output
    x = node.input[0]
    context.remove_node(node.name)
    one = context.make_const(f"{node.name}_one", np.ones((), helper.tensor_dtype_to_np_dtype(dtype))).output[0]
    more = context.make_node("Add", [x, one], dtypes=[dtype], shapes=[shape]).output[0]
    return context.make_node("Log", [more], name=node.name, outputs=outputs, dtypes=[dtype], shapes=[shape])


def select(context: Any, node: Any, name: str, args: Any) -> Any:
    """``Where``: tf2onnx multiplies by 0 and 1 and adds, in which a score of -1e30 drowns what it is added to."""
    from tf2onnx.onnx_opset.controlflow import Select

    node.set_attr("handles_nan", True)
    return Select.version_9(context, node)


def bucketize(context: Any, node: Any, name: str, args: Any) -> Any:
    """``sum_b [x >= b]`` over the boundaries b."""
    from onnx import TensorProto

    dtype, shape, outputs = context.get_dtype(node.output[0]), context.get_shape(node.output[0]), node.output
    x, boundaries = node.input[0], np.array(node.get_attr_value("boundaries"), np.float32)
    context.remove_node(node.name)
    last = context.make_const(f"{node.name}_last", np.array([-1], np.int64)).output[0]
    limits = context.make_const(f"{node.name}_boundaries", boundaries).output[0]
    number = context.make_node("Cast", [x], attr={"to": TensorProto.FLOAT}).output[0]
    column = context.make_node("Unsqueeze", [number, last]).output[0]
    above = context.make_node("GreaterOrEqual", [column, limits]).output[0]
    ones = context.make_node("Cast", [above], attr={"to": dtype}).output[0]
    return context.make_node(
        "ReduceSum",
        [ones, last],
        attr={"keepdims": 0},
        name=node.name,
        outputs=outputs,
        dtypes=[dtype],
        shapes=[shape],
    )


OPERATORS = {
    MARKING: marking,
    "Erfc": erfc,
    "Expm1": expm1,
    "Log1p": log1p,
    "Select": select,
    "SelectV2": select,
    "Bucketize": bucketize,
}
