"""Sums, signs and scales: the multiplier passes through, times a constant."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deepshap_ir.extend import Context, RuleError, Value, rule
from deepshap_ir.rules.shapley import quotient


@rule("Identity")
def identity(ctx: Context, m: Sequence[Value]) -> Value:
    """``y = x``: ``m_x = m_y``."""
    return m[0]


@rule("Add", "Sum")
def add(ctx: Context, m: Sequence[Value]) -> list[Value]:
    """``y = sum_i x_i``: ``m_i = m_y`` for every term."""
    return [m[0]] * ctx.n_inputs


@rule("Mean")
def mean(ctx: Context, m: Sequence[Value]) -> list[Value]:
    """``y = 1/n sum_i x_i``: ``m_i = m_y / n`` for every term."""
    return [m[0] * (1 / ctx.n_inputs)] * ctx.n_inputs


@rule("Sub")
def subtract(ctx: Context, m: Sequence[Value]) -> list[Value]:
    """``y = a - b``: ``m_a = m_y``, ``m_b = -m_y``."""
    return [m[0], -m[0]]


@rule("Neg")
def negate(ctx: Context, m: Sequence[Value]) -> Value:
    """``y = -x``: ``m_x = -m_y``."""
    return -m[0]


@rule("Cast", "CastLike")
def cast(ctx: Context, m: Sequence[Value]) -> list[Value | None]:
    """``m_x = m_y`` where nothing is rounded off, else the secant of the step, ``m_x = m_y * dy / dx``.

    Floating-point numbers among each other pass, and so do smaller types to larger ones. The secant is 0 where
    ``dx = 0``. The value whose type is the target of CastLike has multiplier 0.
    """
    op, x, y = ctx.op, ctx.x(), ctx.y()
    rest = [op.zeros(ctx.shape(1))] if ctx.varies(1) else [None] * (ctx.n_inputs - 1)
    passed = op.cast(m[0], x.dtype if x.is_float else ctx.op.dtype)
    if y.is_float or np.can_cast(x.dtype, y.dtype):
        return [passed, *rest]
    dx = ctx.delta_x()
    return [passed * op.cast(quotient(op.cast(ctx.delta_y(), dx.dtype), dx), passed.dtype), *rest]


@rule("Dropout")
def dropout(ctx: Context, m: Sequence[Value | None]) -> list[Value | None]:
    """The identity, as nothing is dropped at inference; the mask is constant.

    Raises
    ------
    RuleError
        The node drops at random: its `training_mode` is true, or not constant, and its ratio is not 0.
    """
    training = ctx.constant(2) if ctx.has(2) else np.array(False)
    ratio = ctx.constant(1) if ctx.has(1) else np.array(0.5)
    if (training is None or training.any()) and (ratio is None or ratio.any()):
        raise RuleError("it drops elements at random (training_mode). Export the model in inference mode")
    passed = ctx.op.zeros(ctx.shape()) if m[0] is None else m[0]
    return [passed, *[None] * (ctx.n_inputs - 1)]


@rule("BatchNormalization")
def batch_normalization(ctx: Context, m: Sequence[Value]) -> list[Value | None]:
    """``y = (x - mean) scale / sqrt(var + eps) + bias``: ``m_x = m_y scale / sqrt(var + eps)``.

    Where the statistics or the scale vary too, ``x - mean``, the scale and the reciprocal root are the players of a
    product of three, ``m_a = (b c + b0 c0)/3 + (b c0 + b0 c)/6``, and the secant of the reciprocal root is
    ``-1 / (s s0 (s + s0))`` with ``s = sqrt(var + eps)``.

    Raises
    ------
    RuleError
        The node normalises by the statistics of the batch: `training_mode` is 1.
    """
    if ctx.attribute("training_mode", 0):
        raise RuleError("it normalises by the statistics of the batch (training_mode=1). Export the model in eval mode")
    op = ctx.op
    rank = len(ctx.shape())
    channels = [1, -1, *[1] * (rank - 2)]
    others = [a for a in range(rank) if a != 1]

    def root(var: Value) -> Value:
        value: Value = op.Sqrt(op.Reshape(var, channels) + ctx.attribute("epsilon", 1e-5))
        return value

    def product(b: Value, b0: Value, c: Value, c0: Value) -> Value:
        if b is b0 or c is c0:
            return mid(b, b0) * mid(c, c0)
        return (b * c + b0 * c0) * (1 / 3) + (b * c0 + b0 * c) * (1 / 6)

    def mid(b: Value, b0: Value) -> Value:
        return b if b is b0 else (b + b0) * 0.5

    def per_channel(value: Value) -> Value:
        total: Value = op.ReduceSum(value, others, keepdims=0)
        return total

    g, g0 = (op.Reshape(v, channels) for v in (ctx.x(1), ctx.x0(1)))
    s, s0 = root(ctx.x(4)), root(ctx.x0(4))
    r, r0 = 1.0 / s, 1.0 / s0
    m_x = m[0] * product(g, g0, r, r0)
    result: list[Value | None] = [m_x, None, None, None, None]
    if ctx.varies(2):
        result[2] = per_channel(m[0])
    if ctx.varies(3):
        result[3] = -per_channel(m_x)
    if ctx.varies(1) or ctx.varies(4):
        a = ctx.x() - op.Reshape(ctx.x(3), channels)
        a0 = a if not (ctx.varies(0) or ctx.varies(3)) else ctx.x0() - op.Reshape(ctx.x0(3), channels)
        result[1] = per_channel(m[0] * product(a, a0, r, r0))
        result[4] = per_channel(m[0] * product(a, a0, g, g0) * (-1.0 / (s * s0 * (s + s0))))
    return result
