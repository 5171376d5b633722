"""Piecewise linear functions of one number: the slope where both points lie on one piece, else the secant."""

from deepshap_ir.extend import Context, Value
from deepshap_ir.rules.elementwise import TINY, rescale


@rescale("Relu")
def relu(ctx: Context) -> Value:
    """``(max(x, 0) + max(x0, 0)) / (|x| + |x0|)``: 1 or 0 on one side of the kink, 0 where both points are on it."""
    op, y, y0 = ctx.op, ctx.as_float(ctx.y()), ctx.as_float(ctx.y0())
    size = op.Max(abs(ctx.as_float(ctx.x())), TINY)
    size0 = op.Max(abs(ctx.as_float(ctx.x0())), TINY)
    return (y + y0) / (size + size0)
