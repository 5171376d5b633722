"""Where: ``c a + (1 - c) b``, each term a product of two players."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deepshap_ir.extend import Context, Value, rule


@rule("Where")
def where(ctx: Context, m: Sequence[Value]) -> list[Value | None]:
    """``m_a = m (c + c0)/2``, ``m_b = m (1 - (c + c0)/2)``, ``m_c = m ((a + a0) - (b + b0))/2``: Shapley values.

    A branch that is not finite where it is not selected is no player there: its multiplier is 0, and it takes its
    value from the point where it is selected.
    """
    op = ctx.op
    if not ctx.varies(0):
        zero = op.constant(0.0, m[0].dtype)
        taken = [op.Where(ctx.x(0), m[0], zero), op.Where(ctx.x(0), zero, m[0])]
        return [None, *(value if ctx.varies(1 + i) else None for i, value in enumerate(taken))]
    branches = [(1, ctx.x(0), ctx.x0(0)), (2, op.Not(ctx.x(0)), op.Not(ctx.x0(0)))]
    m_a, m_b = (m[0] * _weight(ctx, i, c, c0) if ctx.varies(i) else None for i, c, c0 in branches)
    mid_a, mid_b = (_mid(ctx, i) for i, _, _ in branches)
    step = mid_a - mid_b
    constants = [ctx.constant(i) for i in (1, 2)]
    if any(a is not None and a.dtype.kind == "f" and not np.isfinite(a).all() for a in constants):
        # NaN, or an infinity, is no value of what stays selected
        step = op.Where(op.Equal(ctx.x(0), ctx.x0(0)), op.constant(0.0, m[0].dtype), step)
    return [m[0] * step, m_a, m_b]


def _weight(ctx: Context, i: int, c: Value, c0: Value) -> Value:
    """``(c + c0)/2`` for the branch that `c` selects; 0 where it is selected once and not finite the other time."""
    weight: Value = ctx.op.Max(_score(ctx, ctx.x(i), c) + _score(ctx, ctx.x0(i), c0), ctx.op.constant(0.0, ctx.dtype))
    return weight


def _score(ctx: Context, branch: Value, c: Value) -> Value:
    """A half where selected, minus a half where not selected and not finite."""
    unused = ctx.op.Where(_finite(branch), ctx.op.constant(0.0, ctx.dtype), ctx.op.constant(-0.5, ctx.dtype))
    score: Value = ctx.op.Where(c, ctx.op.constant(0.5, ctx.dtype), unused)
    return score


def _mid(ctx: Context, i: int) -> Value:
    """``(x + x0)/2``, where one of the two is not finite the other one."""
    op, x, x0 = ctx.op, ctx.as_float(ctx.x(i)), ctx.as_float(ctx.x0(i))
    if not ctx.varies(i):
        return x
    if not ctx.x(i).is_float:
        return ctx.mid_x(i)
    half, half0 = (op.Where(_finite(v), v * 0.5, op.constant(0.0, v.dtype)) for v in (x, x0))
    share, share0 = (op.Where(_finite(v), op.constant(1.0, v.dtype), op.constant(2.0, v.dtype)) for v in (x0, x))
    mid: Value = half * share + half0 * share0
    return mid


def _finite(value: Value) -> Value:
    """Whether `value` is neither infinite nor NaN."""
    if not value.is_float:
        return value.op.constant(True)
    finite: Value = value.op.Less(value.op.Abs(value), value.op.constant(np.inf, value.dtype))
    return finite
