"""Smooth functions of one number: rescale, ``m_x = m_y (f(x) - f(x0)) / (x - x0)``.

A difference of rounded numbers is useless where ``x`` is close to ``x0``. So the secants here are written without
``f(x) - f(x0)``, most of them with ``tanh(h)/h``, which is smooth, bounded and cheap:

==========================  ==============================================================
addition formula of tanh    Tanh, Sigmoid, Swish, Mish, Atanh
``f'' = f``                 Exp, Sinh, Cosh: one row each of `EXPONENTIALS`, ``f'``
inverses of these           Log, Asinh, Acosh: one row each of `LOGARITHMS`, ``1/f'``
any other smooth function   `smooth.SMOOTH`: one row, its derivatives and a length
==========================  ==============================================================

What depends on ``x`` or on ``x0`` alone is computed once per row, and only what combines them for every pair.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np

from deepshap_ir.extend import Context, Value, rule

TINY = 1.0907e-30
"""Added to a difference, it changes nothing but an exact 0, where the quotient becomes the derivative.

It is no round number, so that no difference in practice is its negative.
"""

Secant = Callable[[Context], Value]


def rescale(*operators: str, partial: bool = False) -> Callable[[Secant], Secant]:
    """Register ``m_x = m_y * secant(ctx)`` for `operators`; `partial`: for functions that are not finite everywhere."""

    def register(secant: Secant) -> Secant:
        @functools.wraps(secant)
        def rescaled(ctx: Context, m: Sequence[Value]) -> Value:
            return unless_zero(m[0], secant(ctx)) if partial else m[0] * secant(ctx)

        rule(*operators)(rescaled)
        return secant

    return register


def unless_zero(m: Value, secant: Value) -> Value:
    """``m * secant``, but 0 where `m` is 0, as at a branch that a Where did not select, whatever the secant."""
    product: Value = m.op.Where(m.op.Equal(m, 0.0), m, m * secant)
    return product


def inverse_or_zero(total: Value) -> Value:
    """``1 / total``, and 0 where it is 0: both points are where the derivative is infinite, so their delta is 0."""
    op = total.op
    quotient: Value = op.Where(op.Equal(total, 0.0), op.constant(0.0, total.dtype), 1.0 / total)
    return quotient


def tanhc(h: Value) -> Value:
    """``tanh(h) / h``, 1 at 0."""
    h = h + TINY
    t: Value = h.op.Tanh(h)
    return t / h


def number(ctx: Context, name: str, default: float) -> float:
    """An attribute as the runtime sees it: a float32."""
    return float(np.float32(ctx.attribute(name, default)))


@rescale("Tanh")
def tanh(ctx: Context) -> Value:
    """``tanh(d)/d (1 - tanh x tanh x0)``, ``d = x - x0``."""
    return tanhc(ctx.x() - ctx.x0()) * (1.0 - ctx.y() * ctx.y0())


@rescale("Sigmoid")
def sigmoid(ctx: Context) -> Value:
    """That of ``(1 + tanh(x/2)) / 2``."""
    u, u0 = ctx.x() * 0.5, ctx.x0() * 0.5
    t: Value = ctx.op.Tanh(u) * 0.5
    t0: Value = ctx.op.Tanh(u0) * 0.5
    return tanhc(u - u0) * (0.25 - t * t0)


@rescale("Swish")
def swish(ctx: Context) -> Value:
    """``x s(x)``, ``s(x) = sigmoid(alpha x)``, ``r = 1 - s``: ``(s + s0)/2 + (x + x0)/2 (s - s0)/d``.

    ``(s - s0)/d = alpha tanhc(alpha d/2) (s r0 + r s0)/2``.
    """

    def parts(x: Value) -> tuple[Value, Value, Value]:
        u = x * (number(ctx, "alpha", 1.0) / 2)
        return u, 0.5 / (1.0 + x.op.Exp(u * -2.0)), 1.0 / (1.0 + x.op.Exp(u * 2.0))

    (u, s, r), (u0, s0, r0) = parts(ctx.x()), parts(ctx.x0())
    return (s + s0) + (u + u0) * tanhc(u - u0) * (s * r0 + r * s0)


@rescale("Mish")
def mish(ctx: Context) -> Value:
    """``x t(x)``, ``t = tanh(softplus(x)) = n/(n + 2)``, ``n = e^x (e^x + 2)``: ``(t + t0)/2 + (x + x0)/2 (t - t0)/d``.

    ``(t - t0)/d = tanhc(d/2) (e^x + e^x0) (e^x + e^x0 + 2) / ((n + 2) (n0 + 2))``; beyond 20, t is 1.
    """

    def parts(x: Value) -> tuple[Value, Value, Value, Value]:
        e: Value = x.op.Exp(x.op.Min(x, 20.0))
        n = e * (e + 2.0)
        return x * 0.5, e, 1.0 / (n + 2.0), n / (n + 2.0) * 0.5

    (u, e, p, t), (u0, e0, p0, t0) = parts(ctx.x()), parts(ctx.x0())
    total = e + e0
    return (t + t0) + (u + u0) * tanhc(u - u0) * (total * (total + 2.0)) * (p * p0)


@rescale("Softplus")
def softplus(ctx: Context) -> Value:
    """``log(1 + e^x)``, chained: ``tanhc(d/2) / tanhc(dy/2) (e^x + e^x0) / (2 + e^x + e^x0)``, the last 1 beyond 80."""
    op = ctx.op
    e: Value = op.Exp(op.Min(ctx.x(), 80.0))
    e0: Value = op.Exp(op.Min(ctx.x0(), 80.0))
    inner, outer = tanhc(ctx.x() * 0.5 - ctx.x0() * 0.5), tanhc(ctx.y() * 0.5 - ctx.y0() * 0.5)
    return inner / outer * ((e + e0) / ((e + 2.0) + e0))


@rescale("Softsign")
def softsign(ctx: Context) -> Value:
    """``x r(x)``, ``r = 1/(1 + |x|)``: ``r r0 + (|y y0| - y y0) / (|x| + |x0|)``, the last 0 but for opposite signs."""
    y, y0 = ctx.y(), ctx.y0()
    size: Value = ctx.op.Max(abs(ctx.x()), TINY) + abs(ctx.x0())
    opposite = (abs(y) * abs(y0) - y * y0) / size
    r, r0 = 1.0 / (1.0 + abs(ctx.x())), 1.0 / (1.0 + abs(ctx.x0()))
    return r * r0 + opposite


@rescale("Atanh", partial=True)
def atanh(ctx: Context) -> Value:
    """One over that of Tanh from y0 to y: ``1 / (tanhc(dy) (1 - x x0))``, the last without cancellation near 1."""
    x, x0 = ctx.x(), ctx.x0()
    rest = (0.5 - x * 0.5) * (1.0 + x0) + (1.0 + x) * (0.5 - x0 * 0.5)
    return 1.0 / (tanhc(ctx.y() - ctx.y0()) * rest)


EXPONENTIALS: dict[str, Callable[[Value], Value]] = {
    "Exp": lambda x: x.op.Exp(x),
    "Sinh": lambda x: x.op.Cosh(x),
    "Cosh": lambda x: x.op.Sinh(x),
}
LOGARITHMS: dict[str, Callable[[Value], Value]] = {
    "Log": lambda x: x,
    "Asinh": lambda x: x.op.Sqrt(x * x + 1.0),
    "Acosh": lambda x: x.op.Sqrt(x - 1.0) * x.op.Sqrt(x + 1.0),
}


@rescale(*EXPONENTIALS, partial=True)
def exponential(ctx: Context) -> Value:
    """``f'' = f``: ``tanhc(d/2) (f'(x) + f'(x0))/2``."""
    slope = EXPONENTIALS[ctx.node.op_type]
    return tanhc(ctx.x() * 0.5 - ctx.x0() * 0.5) * (slope(ctx.x()) * 0.5 + slope(ctx.x0()) * 0.5)


@rescale(*LOGARITHMS, partial=True)
def logarithm(ctx: Context) -> Value:
    """One over that of the inverse function: ``1 / (tanhc(dy/2) (1/f'(x) + 1/f'(x0))/2)``."""
    inverse_slope = LOGARITHMS[ctx.node.op_type]
    mean = inverse_slope(ctx.x()) * 0.5 + inverse_slope(ctx.x0()) * 0.5
    return inverse_or_zero(tanhc(ctx.y() * 0.5 - ctx.y0() * 0.5) * mean)
