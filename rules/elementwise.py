"""Functions of one number: rescale, ``m_x = m_y (f(x) - f(x0)) / (x - x0)``, without a small difference in it."""

from collections.abc import Sequence

from deepshap_ir.extend import Context, Value, rule

TINY = 1e-30
"""Added to a difference, it changes nothing but an exact 0, where the quotient then is the derivative."""


@rule("Relu")
def relu(ctx: Context, m: Sequence[Value]) -> Value:
    """``(max(x, 0) + max(x0, 0)) / (|x| + |x0|)``: the secant, 1 or 0 on one side of the kink, 0 where both are 0."""
    op, x, x0 = ctx.op, ctx.x(), ctx.x0()
    return m[0] * ((ctx.y() + ctx.y0()) / (op.Max(abs(x), TINY) + op.Max(abs(x0), TINY)))


def tanh_secant(x: Value, x0: Value) -> Value:
    """``(tanh x - tanh x0) / (x - x0) = tanh(d) / d (1 - tanh x tanh x0)``, ``d = x - x0``."""
    op = x.op
    d = (x - x0) + TINY
    return op.Tanh(d) / d * (1.0 - op.Tanh(x) * op.Tanh(x0))


@rule("Tanh")
def tanh(ctx: Context, m: Sequence[Value]) -> Value:
    """`tanh_secant`."""
    return m[0] * tanh_secant(ctx.x(), ctx.x0())


@rule("Sigmoid")
def sigmoid(ctx: Context, m: Sequence[Value]) -> Value:
    """`tanh_secant`, as ``sigmoid(x) = (1 + tanh(x / 2)) / 2``."""
    return m[0] * (tanh_secant(ctx.x() * 0.5, ctx.x0() * 0.5) * 0.25)
