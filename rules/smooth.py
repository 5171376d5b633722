"""Smooth functions of one number that have no exact secant: a row of `SMOOTH` each.

Between close points the secant is the mean of ``f'``, which the derivatives at both ends give (two-point Hermite
quadrature): all that is computed per pair is a polynomial, whatever the function.

To add an operator, write the function of its three derivatives and its row.
"""

import math
from collections.abc import Callable

from deepshap_ir.extend import Context, Value
from deepshap_ir.rules.elementwise import rescale, tanhc

Derivatives = Callable[[Value], tuple[Value, Value, Value]]


def erf(x: Value) -> tuple[Value, Value, Value]:
    """``g = 2/sqrt(pi) exp(-x^2)``, ``-2 x g``, ``(4 x^2 - 2) g``."""
    g: Value = x.op.Exp(-(x * x)) * (2 / math.sqrt(math.pi))
    return g, x * g * -2.0, (x * x * 4.0 - 2.0) * g


def gelu(x: Value) -> tuple[Value, Value, Value]:
    """``P + x p``, ``p (2 - x^2)``, ``p (x^3 - 4 x)``, with the normal distribution P and its density p."""
    op, square = x.op, x * x
    p: Value = op.Exp(square * -0.5) * (1 / math.sqrt(2 * math.pi))
    below: Value = op.Erf(x * math.sqrt(0.5)) * 0.5 + 0.5
    return below + x * p, p * (2.0 - square), p * x * (square - 4.0)


SMOOTH: dict[str, tuple[Derivatives, float]] = {
    # operator: its derivatives f', f'', f''', and the length over which it bends
    "Erf": (erf, 1.0),
    "Gelu": (gelu, 1.5),
}
CLOSE = {4: 0.25, 8: 0.01}
"""Bytes of a number -> the part of its length within which points are close: the quadrature errs less than ``dy/d``."""


@rescale(*SMOOTH)
def smooth(ctx: Context) -> Value:
    """Close: ``(f' + f0')/2 - d (f'' - f0'')/10 + d^2 (f''' + f0''')/120``; else ``(f(x) - f(x0)) / d``."""
    op, (derivatives, length) = ctx.op, SMOOTH[ctx.node.op_type]
    if ctx.attribute("approximate", "none") == "tanh":
        return gelu_tanh(ctx)
    (a1, a2, a3), (b1, b2, b3) = derivatives(ctx.x()), derivatives(ctx.x0())
    d = ctx.delta_x()
    mean = (a1 * 0.5 + b1 * 0.5) + d * ((b2 * 0.1 - a2 * 0.1) + d * (a3 * (1 / 120) + b3 * (1 / 120)))
    secant: Value = op.Where(abs(d) < CLOSE[d.dtype.itemsize] * length, mean, ctx.delta_y() / d)
    return secant


def gelu_tanh(ctx: Context) -> Value:
    """``x s``, ``s = sigmoid(2 u)``, ``r = 1 - s``, ``u = c (x + k x^3)``: ``(s + s0)/2 + (x + x0)/2 (s - s0)/d``.

    ``(s - s0)/d = tanhc(u - u0) (s r0 + r s0) (u - u0)/d`` and ``(u - u0)/d = c (1 + k (x^2 + x x0 + x0^2))``.
    """
    c, k = math.sqrt(2 / math.pi), 0.044715

    def parts(x: Value) -> tuple[Value, Value, Value, Value]:
        square = x * x * (c * k)
        u = x * (square + c)
        return u, 1.0 / (1.0 + x.op.Exp(u * -2.0)), 0.5 / (1.0 + x.op.Exp(u * 2.0)), square + c / 2

    x, x0 = ctx.x(), ctx.x0()
    (u, s, r, a), (u0, s0, r0, a0) = parts(x), parts(x0)
    slope = tanhc(u - u0) * (s * r0 + r * s0) * (a + a0 + x * (x0 * (c * k)))
    return (s * 0.5 + s0 * 0.5) + (x + x0) * slope
