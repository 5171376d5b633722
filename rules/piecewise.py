"""Piecewise linear functions, and those with one exponential piece: exact on a piece, the secant between pieces.

One kink (`bend`): between points of sizes ``q = |x - kink|`` the secant is the mean of the slopes on the two sides,
weighted by the sizes; so nothing is subtracted. Several pieces: ``dy / d``, with dy as differences of numbers that are
exact (`quotient`).
"""

from collections.abc import Sequence

import numpy as np

from deepshap_ir.extend import Context, Value, rule
from deepshap_ir.rules.elementwise import TINY, number, rescale
from deepshap_ir.rules.shapley import by_players, quotient


def bend(rise: Value, size: Value, rise0: Value, size0: Value) -> Value:
    """``(rise + rise0) / (size + size0)``: rise is the slope on the point's side, times its distance from the kink."""
    return (rise + rise0) / (size + size0)


def sizes_of(x: Value, x0: Value) -> tuple[Value, Value]:
    """``|x|`` and ``|x0|``; as their sum must not be 0, the first is TINY at 0."""
    return x.op.Max(abs(x), TINY), abs(x0)


@rescale("Relu")
def relu(ctx: Context) -> Value:
    """``(max(x, 0) + max(x0, 0)) / (|x| + |x0|)``: 0 where both points are on the kink."""
    return _relu(ctx.as_float(ctx.x()), ctx.as_float(ctx.x0()))


def _relu(x: Value, x0: Value) -> Value:
    size, size0 = sizes_of(x, x0)
    return bend(x.op.Relu(x), size, x0.op.Relu(x0), size0)


@rescale("Abs")
def absolute(ctx: Context) -> Value:
    """``(x + x0) / (|x| + |x0|)``: 0 where both points are on the kink."""
    x, x0 = ctx.as_float(ctx.x()), ctx.as_float(ctx.x0())
    size, size0 = sizes_of(x, x0)
    return bend(x, size, x0, size0)


def leaky(x: Value, x0: Value, alpha: Value | float) -> Value:
    """Slope 1 above 0, `alpha` at 0 and below."""

    def rise(x: Value, size: Value) -> Value:
        chosen: Value = x.op.Where(x > 0.0, size, size * alpha)
        return chosen

    size, size0 = sizes_of(x, x0)
    return bend(rise(x, size), size, rise(x0, size0), size0)


@rescale("LeakyRelu")
def leaky_relu(ctx: Context) -> Value:
    """`leaky`."""
    return leaky(ctx.x(), ctx.x0(), number(ctx, "alpha", 0.01))


@rule("PRelu")
def prelu(ctx: Context, m: Sequence[Value]) -> list[Value | None]:
    """``max(x, 0) + w min(x, 0)``; where w varies the product's Shapley value, which divides by no ``w - w0``."""
    x, x0 = ctx.as_float(ctx.x()), ctx.as_float(ctx.x0())
    m_x = m[0] * leaky(x, x0, ctx.mid_x(1)) if ctx.varies(0) else None
    if not ctx.varies(1):
        return [m_x, None]
    low, low0 = ctx.op.Min(x, 0.0), ctx.op.Min(x0, 0.0)
    return [m_x, m[0] * (low * 0.5 + low0 * 0.5)]


@rule("Clip")
def clip(ctx: Context, m: Sequence[Value]) -> list[Value | None]:
    """One bound: `bend`. Two: ``dy / d``. Varying bounds: the Shapley value of the two or three players."""
    rest: list[Value | None] = [None] * (ctx.n_inputs - 1)
    low, high = (ctx.as_float(ctx.x(i)) if ctx.has(i) and not _unbounded(ctx, i) else None for i in (1, 2))
    if ctx.varies(1) or ctx.varies(2):
        return by_players(ctx, m[0], _slopes(ctx.as_float(ctx.x()), low, high))
    x, x0 = ctx.as_float(ctx.x()), ctx.as_float(ctx.x0())
    if low is not None and high is not None:
        return [m[0] * _between(x, x0, low, high), *rest]
    if low is not None:
        return [m[0] * _relu(x - low, x0 - low), *rest]
    return [m[0] * _relu(high - x, high - x0) if high is not None else m[0], *rest]


def _unbounded(ctx: Context, i: int) -> bool:
    """Whether bound `i` is a constant that lets every number pass, such as the lowest float."""
    bound = ctx.constant(i)
    return bound is not None and bool(np.float64(bound) < -1e37 if i == 1 else np.float64(bound) > 1e37)


def _slopes(x: Value, low: Value | None, high: Value | None) -> dict[int, Value]:
    """The derivatives of Clip by x and by its bounds; on a bound, that of the flat side."""
    op = x.op
    low = op.constant(-np.inf, x.dtype) if low is None else low
    high = op.constant(np.inf, x.dtype) if high is None else high
    above = op.Max(x, low) >= high
    below = op.And(x <= low, op.Not(above))
    inside = op.Not(op.Or(below, above))
    return {i: op.cast(condition, x.dtype) for i, condition in enumerate((inside, below, above))}


def _between(x: Value, x0: Value, low: Value, high: Value) -> Value:
    """The secant of Clip: as clipped numbers are exact, ``dy = d`` where both points are inside."""
    dy: Value = x.op.Clip(x, low, high) - x.op.Clip(x0, low, high)
    return quotient(dy, x - x0, _slopes(x, low, high)[0])


@rescale("HardSigmoid")
def hard_sigmoid(ctx: Context) -> Value:
    """``max(0, min(1, alpha x + beta))``: alpha times that of Clip between the kinks."""
    alpha, beta = number(ctx, "alpha", 0.2), number(ctx, "beta", 0.5)
    if alpha == 0:
        return ctx.op.constant(0.0, ctx.x().dtype)
    low, high = (ctx.op.constant(bound, ctx.x().dtype) for bound in sorted([-beta / alpha, (1 - beta) / alpha]))
    return _between(ctx.x(), ctx.x0(), low, high) * alpha


@rescale("HardSwish")
def hard_swish(ctx: Context) -> Value:
    """``a c^2 + c/2 + max(x - k, 0)``, ``c = clip(x, -k, k)``, ``a = 1/6``, ``k = 3``.

    So ``(dc (a (c + c0) + 1/2) + dr) / d`` with r, the last term.
    """
    op, x, x0, a = ctx.op, ctx.x(), ctx.x0(), float(np.float32(1 / 6))
    k = 0.5 / a
    c, c0 = op.Clip(x, -k, k), op.Clip(x0, -k, k)
    dy: Value = (c - c0) * ((c * a + 0.25) + (c0 * a + 0.25)) + (op.Relu(x - k) - op.Relu(x0 - k))
    inside: Value = op.cast(abs(x) < k, x.dtype)
    return quotient(dy, x - x0, inside * (c * (2 * a) + 0.5) + op.cast(x >= k, x.dtype))


@rescale("ThresholdedRelu", "Shrink")
def dead_zone(ctx: Context) -> Value:
    """``x + b`` outside a dead zone, 0 in it, b the constant of a side: ``(dv + db) / d``, ``v = x`` or 0, so exact."""
    op, x, x0 = ctx.op, ctx.as_float(ctx.x()), ctx.as_float(ctx.x0())
    if ctx.node.op_type == "ThresholdedRelu":
        low, high, bias = -np.inf, number(ctx, "alpha", 1.0), 0.0
    else:
        high, bias = number(ctx, "lambd", 0.5), number(ctx, "bias", 0.0)
        low = -high
    zero, one = op.constant(0.0, x.dtype), op.constant(1.0, x.dtype)

    def outside(x: Value, below: Value, above: Value) -> Value:
        chosen: Value = op.Where(x < low, below, op.Where(x > high, above, zero))
        return chosen

    dy = outside(x, x, x) - outside(x0, x0, x0)
    if bias:
        up, down = op.constant(bias, x.dtype), op.constant(-bias, x.dtype)
        dy = dy + (outside(x, up, down) - outside(x0, up, down))
    return quotient(dy, x - x0, outside(x, one, one))


@rescale("Elu", "Celu", "Selu")
def exponential_unit(ctx: Context) -> Value:
    """``gamma (r + alpha (exp(n / beta) - 1))``, ``r = max(x, 0)``, ``n = min(x, 0)``: ``gamma (dr + alpha de) / d``.

    ``de = tanh(dn / (2 beta)) (e + e0)``, which is exact where n is close to n0.
    """
    op, x, x0 = ctx.op, ctx.x(), ctx.x0()
    alpha = number(ctx, "alpha", 1.6732631921768188 if ctx.node.op_type == "Selu" else 1.0)
    beta = alpha if ctx.node.op_type == "Celu" else 1.0
    gamma = number(ctx, "gamma", 1.0507010221481323) if ctx.node.op_type == "Selu" else 1.0

    def parts(x: Value) -> tuple[Value, Value, Value]:
        n: Value = op.Min(x, 0.0)
        return op.Relu(x), n * (0.5 / beta), op.Exp(n * (1 / beta)) * alpha

    (r, h, e), (r0, h0, e0) = parts(x), parts(x0)
    dy = (r - r0) + op.Tanh(h - h0) * (e + e0)
    secant = quotient(dy, x - x0, op.Where(x > 0.0, op.constant(1.0, x.dtype), e * (1 / beta)))
    return secant if gamma == 1.0 else secant * gamma
