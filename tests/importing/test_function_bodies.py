"""Function bodies of the standard, emitted on values."""

import numpy as np
from onnx import parser

from deepshap_ir.engine.emitter import Emitter
from deepshap_ir.engine.expand import emit_function
from deepshap_ir.engine.value import SAMPLE, Value

BODY = """
<domain: "test", opset_import: ["" : 18]>
choose <kind> (x) => (y)
{
    known = Constant <value_int: int = @kind> ()
    zero = Constant <value_int: int = 0> ()
    flag = Equal (known, zero)
    two = Constant <value_float: float = 2.0> ()
    scale = CastLike (two, x)
    y = If (flag) <
        then_branch = yes () => (a) { a = Mul (x, scale) },
        else_branch = no () => (b) { one = Sub (scale, x) b = Neg (one) }
    >
}
"""


def emitted(kind: int, dtype: type[np.floating] = np.float32) -> tuple[list[str], Value]:
    op = Emitter({"": 18}, np.dtype(dtype))
    (y,) = emit_function(parser.parse_function(BODY), op, [op.input("x", (1, 3), dtype, [SAMPLE])], {"kind": kind})
    assert y is not None
    return [step.op_type for step in op.steps], y


def test_a_branch_on_a_constant_is_taken() -> None:
    assert emitted(0)[0] == ["Mul"]
    assert emitted(1)[0] == ["Sub", "Neg"]


def test_a_constant_takes_the_type_of_a_value_and_stays_one() -> None:
    assert emitted(0, np.float64)[1].dtype == np.float64
