"""Powers: secants that subtract nothing but logarithms."""

from __future__ import annotations

from collections.abc import Sequence

from deepshap_ir.extend import Array, Context, Value, rule
from deepshap_ir.rules.elementwise import inverse_or_zero, rescale, tanhc, unless_zero
from deepshap_ir.rules.shapley import by_players, quotient

LARGEST = 32
"""Largest whole exponent that is multiplied out."""


@rescale("Sqrt", partial=True)
def sqrt(ctx: Context) -> Value:
    """``1 / (sqrt x + sqrt x0)``."""
    return inverse_or_zero(ctx.y() + ctx.y0())


@rescale("Reciprocal", partial=True)
def reciprocal(ctx: Context) -> Value:
    """``-1 / (x x0)``."""
    return -ctx.y() * ctx.y0()


@rule("Pow")
def power(ctx: Context, m: Sequence[Value]) -> list[Value | None]:
    """A constant exponent: `whole_power`, `half_power` or `any_power`; else the Shapley value of the varying operands.

    With two players, ``m_a`` is the mean over b and b0 of the secants in a, and ``m_b`` the reverse.
    """
    exponent = _only(ctx.constant(1))
    if exponent is not None and abs(exponent) <= LARGEST:
        if not ctx.x().is_float and (exponent < 0 or exponent % 1):
            return by_players(ctx, m[0])
        if exponent % 1 == 0:
            return [unless_zero(m[0], whole_power(ctx, int(exponent))), None]
        if exponent % 0.5 == 0:
            return [unless_zero(m[0], half_power(ctx, int(2 * exponent))), None]
    if not ctx.x().is_float:
        return by_players(ctx, m[0])
    return [
        ctx.op.cast(unless_zero(m[0], s), ctx.as_float(ctx.x(i)).dtype) if s is not None else None
        for i, s in enumerate(_secants(ctx))
    ]


def _only(array: Array | None) -> float | None:
    """The number that all elements of `array` are."""
    if array is None or array.size == 0 or (array != array.flat[0]).any():
        return None
    return float(array.flat[0])


def _sum_of_powers(n: int, x: Value, x0: Value) -> Value:
    """``(x^n - x0^n) / (x - x0)``, ``n >= 1``, by ``S_2k = (x^k + x0^k) S_k`` and ``S_(k+1) = x^k + x0 S_k``."""
    total: Value | None = None
    p, p0 = x, x0
    for bit in bin(n)[3:]:
        total = p + p0 if total is None else (p + p0) * total
        p, p0 = p * p, p0 * p0
        if bit == "1":
            total = p + x0 * total
            p, p0 = p * x, p0 * x0
    return x.op.constant(1.0, x.dtype) if total is None else total


def whole_power(ctx: Context, n: int) -> Value:
    """``S_n = sum_k x^k x0^(n-1-k)``; for a negative exponent ``-S_|n| y y0``."""
    if n == 0:
        return ctx.op.constant(0.0, ctx.as_float(ctx.x()).dtype)
    total = _sum_of_powers(abs(n), ctx.as_float(ctx.x()), ctx.as_float(ctx.x0()))
    return total if n > 0 else -ctx.y() * total * ctx.y0()


def half_power(ctx: Context, n: int) -> Value:
    """The exponent n/2, with ``u = sqrt x``: ``S_n(u, u0) / (u + u0)``; negative, ``-S_|n|(u, u0) y y0 / (u + u0)``."""
    u: Value = ctx.op.Sqrt(ctx.x())
    u0: Value = ctx.op.Sqrt(ctx.x0())
    total = _sum_of_powers(abs(n), u, u0) * inverse_or_zero(u + u0)
    return total if n > 0 else -ctx.y() * total * ctx.y0()


def any_power(a: Value, a0: Value, y: Value, y0: Value, b: Value) -> Value:
    """The secant of ``y = a^b`` in a: ``(y + y0) / (a + a0) tanh(b l) / tanh(l)``, ``l = log(a/a0) / 2``.

    For opposite signs (of whole powers) ``(y - y0) / (a - a0)``.
    """
    op = a.op

    def half_log(a: Value) -> Value:
        half: Value = op.Where(op.Equal(a, 0.0), op.constant(-1e30, a.dtype), op.Log(abs(a)) * 0.5)
        return half

    ratio = tanhc((half_log(a) - half_log(a0)) * b) / tanhc(half_log(a) - half_log(a0)) * b
    at_zero: Value = op.cast(op.Equal(b, 1.0), a.dtype)
    same: Value = op.Where(op.Equal(a + a0, 0.0), at_zero, (y + y0) / (a + a0) * ratio)
    secant: Value = op.Where(op.Xor(a < 0.0, a0 < 0.0), (y - y0) / (a - a0), same)
    return secant


def any_exponent(b: Value, b0: Value, y: Value, y0: Value, a: Value) -> Value:
    """The secant of ``a^b`` in b: ``log(a) tanhc(h) (y + y0)/2``, ``h = (b - b0) log(a)/2``; ``dy/d`` for a <= 0."""
    op = a.op
    log: Value = op.Log(a)
    smooth = tanhc((b * 0.5 - b0 * 0.5) * log) * log * (y * 0.5 + y0 * 0.5)
    secant: Value = op.Where(a > 0.0, smooth, quotient(y - y0, b - b0))
    return secant


def _secants(ctx: Context) -> list[Value | None]:
    op, a, a0 = ctx.op, ctx.x(0), ctx.x0(0)
    b, b0 = (op.cast(b, a.dtype) for b in (ctx.x(1), ctx.x0(1)))
    s_a = s_b = None
    if not ctx.varies(1):
        s_a = any_power(a, a0, ctx.y(), ctx.y0(), b)
    elif not ctx.varies(0):
        s_b = any_exponent(b, b0, ctx.y(), ctx.y0(), a)
    else:
        y_a, y_b = ctx.forward(a, ctx.x0(1)), ctx.forward(a0, ctx.x(1))
        s_a = any_power(a, a0, ctx.y(), y_b, b) * 0.5 + any_power(a, a0, y_a, ctx.y0(), b0) * 0.5
        s_b = any_exponent(b, b0, ctx.y(), y_a, a) * 0.5 + any_exponent(b, b0, y_b, ctx.y0(), a0) * 0.5
    return [s_a, s_b]
