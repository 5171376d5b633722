"""Sums and means over axes: the multiplier is spread back over what was added up."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from deepshap_ir.extend import Context, Expansion, Value, expand, rule
from deepshap_ir.rules.shapley import quotient


@rule("ReduceSum")
def reduce_sum(ctx: Context, m: Sequence[Value]) -> Value:
    """``y = sum x``: ``m_x = m_y`` at every element of the sum."""
    return spread(ctx, m[0], reduced_axes(ctx))


@rule("ReduceMean")
def reduce_mean(ctx: Context, m: Sequence[Value]) -> Value:
    """``y = sum x / n``: ``m_x = m_y / n``. A mean of integers is rounded; its secant is ``dy / sum dx``, 0 at 0."""
    op, axes = ctx.op, reduced_axes(ctx)
    count = math.prod(ctx.shape()[a] for a in axes)
    if ctx.x().is_float or not axes:
        return spread(ctx, m[0] * (1 / count), axes)
    total = op.ReduceSum(ctx.delta_x(), axes, keepdims=ctx.attribute("keepdims", 1))
    return spread(ctx, m[0] * quotient(ctx.delta_y(), total), axes)


@expand("ReduceL2")
def euclidean(ctx: Expansion) -> Value:
    """``sqrt(sum x^2)``; the standard's body takes the root in float32, of doubles too."""
    op, x = ctx.op, ctx.x()
    axes = [ctx.x(1)] if ctx.has(1) else []
    over = {name: ctx.attribute(name, default) for name, default in (("keepdims", 1), ("noop_with_empty_axes", 0))}
    total = op.ReduceSum(x * x, *axes, **over)
    root = op.Sqrt(total if x.is_float else op.cast(total, np.float32))
    return op.cast(root, x.dtype)


@rule("GlobalAveragePool")
def global_average_pool(ctx: Context, m: Sequence[Value]) -> Value:
    """The mean over all positions: ``m_x = m_y / positions``."""
    return m[0] * (1 / math.prod(ctx.shape()[2:]))


@rule("CumSum")
def cumulative_sum(ctx: Context, m: Sequence[Value]) -> list[Value | None]:
    """``y_j = sum_{i <= j} x_i``: ``m_i = sum_{j >= i} m_j``, the running sum from the other end."""
    exclusive, reverse = ctx.attribute("exclusive", 0), ctx.attribute("reverse", 0)
    axis = ctx.fixed(1, "axes").reshape(())
    return [ctx.op.CumSum(m[0], axis, exclusive=exclusive, reverse=1 - reverse), None]


def reduced_axes(ctx: Context) -> list[int]:
    """The axes over which the node reduces, counted from the front."""
    rank = len(ctx.shape())
    given = ctx.fixed(1, "axes") if ctx.has(1) else np.array([])
    if given.size == 0:
        return [] if ctx.attribute("noop_with_empty_axes", 0) else list(range(rank))
    return sorted(int(a) % rank for a in given.reshape(-1))


def spread(ctx: Context, m: Value, axes: Sequence[int]) -> Value:
    """`m` with the reduced `axes` back in place, with length 1."""
    kept = [1 if a in axes else n for a, n in enumerate(ctx.shape())]
    value: Value = ctx.op.Reshape(m, ctx.op.constant(kept, "int64"))
    return value
