"""Softmax, LogSoftmax and LogSumExp by logarithmic means; Hardmax by the secant of its step.

With ``p = softmax(x)``, ``q = softmax(x0)`` and the logarithmic mean ``L = (p - q) / (ln p - ln q)``, which is p where
the two are equal, the weights ``w = L / sum L`` satisfy

``sum_j L_j d(ln p_j) = sum_j (p_j - q_j) = 0``, hence ``d logsumexp = sum_j w_j dx_j``.

So each multiplier sums to delta, does not change when a number is added to all logits, and is the derivative where
``p = q``. These are the weights of the Sato-Vartia index.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deepshap_ir.extend import Context, Value, rule
from deepshap_ir.rules.elementwise import tanhc

TINY = 1e-30
"""Added to a denominator that is 0 only where its numerator is 0."""


@rule("Softmax", "deepshap_ir::Softmax")
def softmax(ctx: Context, m: Sequence[Value]) -> Value:
    """``L m - L <L, m> / sum L``; in rows masked as a whole at one point alone, shared by the scores that jump.

    All scores fall there by the same large number, which changes nothing but what float32 makes of the others.
    """
    op, axis, highest = ctx.op, _axis(ctx), ctx.attribute("highest", None)
    means, total = _means(op.LogSoftmax(ctx.x(), axis=axis), op.LogSoftmax(ctx.x0(), axis=axis), [axis])
    weighted = means * m[0]
    multipliers: Value = weighted - means * (op.ReduceSum(weighted, [axis]) / total)
    if highest is None:
        return multipliers
    masked, masked0 = (op.ReduceMax(x, [axis]) < highest for x in (ctx.x(), ctx.x0()))
    jumps = op.ReduceMax(abs(ctx.delta_x()), [axis]) > -highest
    whole = op.And(jumps, op.Not(op.Equal(masked, masked0)))
    return op.Where(whole, _jumping(ctx, m[0]), multipliers)


@rule("LogSoftmax", "deepshap_ir::LogSoftmax")
def log_softmax(ctx: Context, m: Sequence[Value]) -> Value:
    """``m - w sum(m)``."""
    op, axis = ctx.op, _axis(ctx)
    log_p, log_q = ctx.y(), ctx.y0()
    if ctx.node.domain:  # what is masked is -inf there
        log_p, log_q = op.LogSoftmax(ctx.x(), axis=axis), op.LogSoftmax(ctx.x0(), axis=axis)
    means, total = _means(log_p, log_q, [axis])
    return m[0] - means * (op.ReduceSum(m[0], [axis]) / total)


@rule("deepshap_ir::AllMasked")
def all_masked(ctx: Context, m: Sequence[Value]) -> Value:
    """Where a row of scores becomes masked as a whole, or stops to be: shared by those that were masked, or are now."""
    return _jumping(ctx, m[0])


def _jumping(ctx: Context, m: Value) -> Value:
    """The change, in equal shares of the scores that jump over the attribute `highest`."""
    op, axis = ctx.op, _axis(ctx)
    delta = ctx.delta_x()
    jumps = abs(delta) > abs(ctx.attribute("highest"))  # NaN, of what is -inf in both, is none
    none = op.constant(0.0, delta.dtype)
    total = op.ReduceSum(m * op.cast(ctx.delta_y(), delta.dtype), [axis])
    count = op.Max(op.ReduceSum(op.cast(jumps, delta.dtype), [axis]), op.constant(1.0, delta.dtype))
    multipliers: Value = op.Where(jumps, total / count / delta, none)
    return multipliers


@rule("ReduceLogSumExp")
def log_sum_exp(ctx: Context, m: Sequence[Value]) -> Value:
    """``w m``."""
    op, shape = ctx.op, ctx.shape()
    given = ctx.constant(1)
    if given is not None and given.size:
        axes = [int(a) % len(shape) for a in given.reshape(-1)]
    elif ctx.attribute("noop_with_empty_axes", 0):
        return m[0]
    else:
        axes = list(range(len(shape)))
    kept = [1 if a in axes else n for a, n in enumerate(shape)]
    means, total = _means(ctx.x() - op.Reshape(ctx.y(), kept), ctx.x0() - op.Reshape(ctx.y0(), kept), axes)
    return means * (op.Reshape(m[0], kept) / total)


@rule("Hardmax")
def hardmax(ctx: Context, m: Sequence[Value]) -> Value:
    """``D <m, D> / <D, dx>`` with ``D = y - y0``.

    Where the winner changes from j to k, D is 1 at k and -1 at j, and ``<D, dx>`` is by how much ``x_k - x_j`` rose:
    the step at which it became positive is booked to the two by its secant. Elsewhere D is 0.
    """
    op, axis = ctx.op, _axis(ctx)
    change = ctx.delta_y()
    rise = op.ReduceSum(change * ctx.delta_x(), [axis])
    return change * (op.ReduceSum(m[0] * change, [axis]) / (rise + TINY))


def logarithmic_mean(log_p: Value, log_q: Value) -> Value:
    """``(p - q) / (ln p - ln q)`` from ``ln p`` and ``ln q``: ``(p + q)/2 tanh(h)/h`` with ``h = (ln p - ln q)/2``."""
    op = log_p.op
    return tanhc(log_p * 0.5 - log_q * 0.5) * (op.Exp(log_p) * 0.5 + op.Exp(log_q) * 0.5)


def _means(log_p: Value, log_q: Value, axes: Sequence[int]) -> tuple[Value, Value]:
    """The logarithmic means, and their sum along `axes`.

    A logit of -inf at both points has the mean 0, and so has every one where all are. One that is -inf at one point
    alone would need an infinite multiplier: there the sum is NaN. Which logits are -inf is compared by a sum of fixed
    whole numbers over them, which is the same in whatever order it is taken.
    """
    op = log_p.op
    dtype = log_p.dtype
    shape = [n if a in axes else 1 for a, n in enumerate(log_p.shape)]
    numbers = np.random.default_rng(0).integers(1, 2**52 // np.prod(shape), shape).astype(np.float64)
    finite, masks = [], []
    for logits in (log_p, log_q):
        masked = op.Not(logits > -np.inf)  # all masked, the probabilities are NaN
        finite.append(op.Where(masked, op.constant(-1e4, dtype), logits))
        masks.append(op.ReduceSum(op.Where(masked, op.constant(numbers), op.constant(0.0, np.float64)), list(axes)))
    means = logarithmic_mean(*finite)
    differ = op.Where(op.Equal(*masks), op.constant(0.0, dtype), op.constant(np.nan, dtype))
    return means, op.Max(op.ReduceSum(means, list(axes)), op.constant(TINY, dtype)) + differ


def _axis(ctx: Context) -> int:
    axis: int = ctx.attribute("axis", -1)
    return axis % len(ctx.shape())
