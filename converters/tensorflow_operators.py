"""TensorFlow operators that tf2onnx lacks or has wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from deepshap_ir.converters.tensorflow_graph import MARK, MARKING


def handlers() -> dict[str, tuple[Any, list[Any]]]:
    """Return them as ``tf2onnx.convert.from_graph_def`` takes them."""

    def written(formula: Callable[..., Any]) -> Any:
        def handler(context: Any, node: Any, name: str, args: Any) -> Any:
            op = Writer(context, node)
            return formula(op, *op.inputs)

        return handler

    known = OPERATORS | {name: written(formula) for name, formula in FORMULAS.items()}
    return {name: (handler, []) for name, handler in known.items()}


def marking(context: Any, node: Any, name: str, args: Any) -> Any:
    """Keep the mark, in a domain of its own."""
    node.domain = MARK
    node.type = "Mark"
    for attribute in list(node.attr):
        del node.attr[attribute]
    return node


class Writer:
    """Writes the nodes that take the place of one of TensorFlow's, whose dtype they have.

    Parameters
    ----------
    context, node : as tf2onnx gives them to a handler.
    """

    def __init__(self, context: Any, node: Any) -> None:
        self.context, self.node = context, node
        self.inputs, self.outputs = list(node.input), list(node.output)
        self.dtype, self.shape = context.get_dtype(node.output[0]), context.get_shape(node.output[0])
        context.remove_node(node.name)

    def __call__(self, op_type: str, *operands: str | float) -> str:
        """The name of what one more node makes of values and numbers."""
        name: str = self.context.make_node(op_type, self._named(operands)).output[0]
        return name

    def last(self, op_type: str, *operands: str | float) -> Any:
        """The node that makes what the one of TensorFlow made."""
        return self.context.make_node(
            op_type,
            self._named(operands),
            name=self.node.name,
            outputs=self.outputs,
            dtypes=[self.dtype],
            shapes=[self.shape],
        )

    def _named(self, operands: Sequence[str | float]) -> list[str]:
        from onnx import helper
        from tf2onnx.utils import make_name

        dtype = helper.tensor_dtype_to_np_dtype(self.dtype)
        return [
            x
            if isinstance(x, str)
            else self.context.make_const(make_name(f"{self.node.name}_number"), np.array(x, dtype)).output[0]
            for x in operands
        ]


def erfc(op: Writer, x: str) -> Any:
    """``1 - Erf(x)``: tf2onnx writes an operator that ONNX does not have."""
    return op.last("Sub", 1, op("Erf", x))


def expm1(op: Writer, x: str) -> Any:
    """``Exp(x) - 1``."""
    return op.last("Sub", op("Exp", x), 1)


def log1p(op: Writer, x: str) -> Any:
    """``Log(x + 1)``."""
    return op.last("Log", op("Add", x, 1))


def mul_no_nan(op: Writer, x: str, y: str) -> Any:
    """``x y``, 0 where y is."""
    return op.last("Where", op("Equal", y, 0), 0, op("Mul", x, y))


def xlogy(op: Writer, x: str, y: str) -> Any:
    """``x Log(y)``, 0 where x is."""
    return op.last("Where", op("Equal", x, 0), 0, op("Mul", x, op("Log", y)))


def xlog1py(op: Writer, x: str, y: str) -> Any:
    """``x Log(y + 1)``, 0 where x is."""
    return op.last("Where", op("Equal", x, 0), 0, op("Mul", x, op("Log", op("Add", y, 1))))


SHIFT = 6
"""Stirling's series stands at ``x + SHIFT``, from where the recurrence leads back to x."""


def lgamma(op: Writer, x: str) -> Any:
    """``ln Gamma(x)`` where x > 0 (to 5e-6 in float32), else NaN.

    ``ln Gamma(s) = (s - 1/2) ln s - s + ln(2 pi) / 2 + 1 / 12 s - 1 / 360 s^3 + 1 / 1260 s^5``, and
    ``ln Gamma(x) = ln Gamma(x + 6) - ln x - ... - ln (x + 5)``.
    """
    s = op("Add", x, SHIFT)
    total = op("Sub", op("Mul", op("Sub", s, 0.5), op("Log", s)), op("Sub", s, 0.5 * np.log(2 * np.pi)))
    for factor, power in ((12, 1), (-360, 3), (1260, 5)):
        total = op("Add", total, op("Div", 1 / factor, op("Pow", s, power)))
    for i in range(1, SHIFT):
        total = op("Sub", total, op("Log", op("Add", x, i)))
    return op.last("Sub", total, op("Log", x))


def digamma(op: Writer, x: str) -> Any:
    """The derivative of ``ln Gamma(x)`` where x > 0: ``ln s - 1 / 2 s - 1 / 12 s^2 + 1 / 120 s^4 - 1 / 252 s^6``."""
    s = op("Add", x, SHIFT)
    total = op("Log", s)
    for factor, power in ((-2, 1), (-12, 2), (120, 4), (-252, 6)):
        total = op("Add", total, op("Div", 1 / factor, op("Pow", s, power)))
    for i in range(1, SHIFT):
        total = op("Sub", total, op("Reciprocal", op("Add", x, i)))
    return op.last("Sub", total, op("Reciprocal", x))


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


FORMULAS: dict[str, Callable[..., Any]] = {
    "Digamma": digamma,
    "Erfc": erfc,
    "Expm1": expm1,
    "Lgamma": lgamma,
    "Log1p": log1p,
    "MulNoNan": mul_no_nan,
    "Xlog1py": xlog1py,
    "Xlogy": xlogy,
}
"""Operators of numbers -> what writes them with others."""

OPERATORS = {
    MARKING: marking,
    "Select": select,
    "SelectV2": select,
    "Bucketize": bucketize,
}
