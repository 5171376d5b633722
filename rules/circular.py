"""Sine, cosine, tangent and their inverses, by the formulas for sums and differences of angles."""

from deepshap_ir.extend import Context, Value
from deepshap_ir.rules.elementwise import TINY, inverse_or_zero, rescale


def sinc(h: Value) -> Value:
    """``sin(h) / h``, 1 at 0."""
    h = h + TINY
    s: Value = h.op.Sin(h)
    return s / h


def _half_angles(ctx: Context) -> tuple[Value, Value, Value, Value, Value]:
    """``sinc(d/2)``, and sine and cosine of ``x/2`` and ``x0/2``."""
    op, u, u0 = ctx.op, ctx.x() * 0.5, ctx.x0() * 0.5
    return sinc(u - u0), op.Sin(u), op.Cos(u), op.Sin(u0), op.Cos(u0)


@rescale("Sin")
def sin(ctx: Context) -> Value:
    """``sinc(d/2) cos((x + x0)/2)``."""
    factor, s, c, s0, c0 = _half_angles(ctx)
    return factor * (c * c0 - s * s0)


@rescale("Cos")
def cos(ctx: Context) -> Value:
    """``-sinc(d/2) sin((x + x0)/2)``."""
    factor, s, c, s0, c0 = _half_angles(ctx)
    return factor * (-s * c0 - c * s0)


@rescale("Tan")
def tan(ctx: Context) -> Value:
    """``sinc(d) / (cos x cos x0)``."""
    c: Value = 1.0 / ctx.op.Cos(ctx.x())
    c0: Value = 1.0 / ctx.op.Cos(ctx.x0())
    return sinc(ctx.x() - ctx.x0()) * (c * c0)


@rescale("Atan")
def atan(ctx: Context) -> Value:
    """One over that of Tan: ``cos y cos y0 / sinc(dy)`` with ``cos y = 1/sqrt(1 + x^2)``; far apart, ``dy/d``."""
    op, dy = ctx.op, ctx.delta_y()
    c: Value = 1.0 / op.Sqrt(1.0 + ctx.x() * ctx.x())
    c0: Value = 1.0 / op.Sqrt(1.0 + ctx.x0() * ctx.x0())
    secant: Value = op.Where(abs(dy) < 1.0, c * c0 / sinc(dy), dy / ctx.delta_x())
    return secant


@rescale("Asin", "Acos", partial=True)
def asin(ctx: Context) -> Value:
    """One over that of Sin or Cos: ``+-cos h / (sinc h (w + w0)/2)``, ``h = dy/2``, ``w = sqrt(1 - x^2)``.

    Far apart it is ``dy/d``.
    """
    op = ctx.op
    half = 0.5 if ctx.node.op_type == "Asin" else -0.5
    w: Value = op.Sqrt(1.0 - ctx.x()) * op.Sqrt(1.0 + ctx.x()) * half
    w0: Value = op.Sqrt(1.0 - ctx.x0()) * op.Sqrt(1.0 + ctx.x0()) * half
    h = ctx.y() * 0.5 - ctx.y0() * 0.5
    near = op.Cos(h) * inverse_or_zero(sinc(h) * (w + w0))
    secant: Value = op.Where(abs(h) < 1.0, near, ctx.delta_y() / ctx.delta_x())
    return secant
